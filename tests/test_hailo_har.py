"""HARs are read as documented, and nothing else gets through."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
from helpers_har import files_of, npz, pack

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo import har as har_module
from whisper_hailo_hf.hailo import read_har


def small_network(name="net"):
    def layer(kind, inputs, outputs, shapes, names, **params):
        given = {"input_shapes": [shapes[0]], "output_shapes": [shapes[1]], "original_names": names}
        return {"type": kind, "input": inputs, "output": outputs, **given, "params": params}

    before, behind = [-1, 1, 60, 8], [-1, 1, 60, 4]
    hn = {
        "name": name,
        "net_params": {"version": "1.0", "stage": "HN", "net_scopes": [name]},
        "layers": {
            f"{name}/input_layer1": layer("input_layer", [], [f"{name}/conv1"], (before, before), ["features"]),
            f"{name}/conv1": layer(
                "conv",
                [f"{name}/input_layer1"],
                [f"{name}/output_layer1"],
                (before, behind),
                ["/conv1/Conv", "/act/Relu"],
                kernel_shape=[1, 3, 8, 4],
                padding="SAME_TENSORFLOW",
            ),
            f"{name}/output_layer1": layer("output_layer", [f"{name}/conv1"], [], (behind, behind), ["states"]),
        },
    }
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, 3, 8, 4)).astype(np.float32)
    return hn, {f"{name}/conv1/kernel:0": kernel, f"{name}/conv1/bias:0": np.arange(4, dtype=np.float32)}


def test_network_as_documented(tmp_path):
    hn, weights = small_network()
    har = read_har(pack(tmp_path / "net.har", files_of(hn, weights)))
    assert (har.name, har.state, har.stage) == ("net", "hailo_model", "present")
    assert har.metadata["hw_arch"] == "hailo8l"
    assert har.net_params["net_scopes"] == ["net"]
    assert list(har.layers) == ["net/input_layer1", "net/conv1", "net/output_layer1"]
    conv = har.layers["net/conv1"]
    assert (conv.type, conv.short_name, conv.inputs) == ("conv", "conv1", ("net/input_layer1",))
    assert conv.original_names == ("/conv1/Conv", "/act/Relu")
    assert (conv.input_shapes, conv.output_shapes) == (((-1, 1, 60, 8),), ((-1, 1, 60, 4),))
    assert conv.params["padding"] == "SAME_TENSORFLOW"
    assert har.weights.keys() == {"net/conv1"}
    for key in ("kernel", "bias"):
        assert np.array_equal(har.weights["net/conv1"][key], weights[f"net/conv1/{key}:0"])
    assert set(har.files) == {"net.hn", "net.npz", "net.metadata.json", "net.original_model_meta.json"}


def test_earliest_form_unless_told_otherwise(tmp_path):
    hn, weights = small_network()
    files = files_of(hn, weights, state="quantized_model")
    hn["layers"]["net/conv1"]["params"]["padding"] = "VALID"
    files["net.native.hn"] = json.dumps(hn).encode()
    path = pack(tmp_path / "net_optimized.har", files)
    native, present = read_har(path), read_har(path, "present")
    assert (native.stage, present.stage) == ("native", "present")
    assert native.layers["net/conv1"].params["padding"] == "VALID"
    assert present.layers["net/conv1"].params["padding"] == "SAME_TENSORFLOW"
    assert not native.weights  # the weights of the present form may have been changed since
    assert present.weights
    with pytest.raises(RequestError, match="keeps no form 'fp' of the graph: choose native, present"):
        read_har(path, "fp")
    files["net.native.npz"] = npz(weights)
    assert read_har(pack(path, files)).weights.keys() == {"net/conv1"}


def test_metadata_says_which_files_count(tmp_path):
    hn, weights = small_network()
    files = files_of(hn, weights)
    other, _ = small_network("other")
    files["other.hn"] = json.dumps(other).encode()
    assert read_har(pack(tmp_path / "net.har", files)).name == "net"
    del files["net.metadata.json"]
    with pytest.raises(RequestError, match=r"holds the graphs of several networks: net\.hn, other\.hn"):
        read_har(pack(tmp_path / "two.har", files))


def test_har_without_weights_or_metadata(tmp_path):
    hn, _ = small_network()
    har = read_har(pack(tmp_path / "net.har", {"net.hn": json.dumps(hn).encode()}))
    assert not har.weights
    assert not har.metadata
    assert har.state == ""


@pytest.mark.parametrize("name", ["../net.hn", "/etc/net.hn", "a/../../net.hn", "..\\net.hn"])
def test_paths_that_lead_out_are_refused(name, tmp_path):
    hn, weights = small_network()
    path = pack(tmp_path / "net.har", files_of(hn, weights) | {name: b"{}"})
    with pytest.raises(RequestError, match="which leads out of it: refused"):
        read_har(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    path = tmp_path / "net.har"
    with tarfile.open(path, "w:") as archive:
        entry = tarfile.TarInfo("net.hn")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(RequestError, match="which is a link, a device or a sparse file: refused"):
        read_har(path)


def test_same_path_twice_is_refused(tmp_path):
    path = tmp_path / "net.har"
    with tarfile.open(path, "w:") as archive:
        for name in ("net.hn", "./net.hn"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(RequestError, match=r"holds 'net.hn' twice: refused"):
        read_har(path)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    hn, weights = small_network()
    path = pack(tmp_path / "net.har", files_of(hn, weights))
    for limit, value, match in (
        ("MAX_JSON_BYTES", 100, r"net\.metadata\.json has 0 MiB, more than the 0 MiB that are read"),
        ("MAX_WEIGHT_BYTES", 100, r"net\.npz has .* more than"),
        ("MAX_MEMBERS", 3, "holds more than 3 files"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(har_module, limit, value)
            with pytest.raises(RequestError, match=match):
                read_har(path)


def test_weights_that_unpack_to_too_much(tmp_path, monkeypatch):
    hn, _ = small_network()
    packed = io.BytesIO()
    np.savez_compressed(packed, **{"net/conv1/kernel:0": np.zeros(10**6, np.float32)})
    assert len(packed.getvalue()) < 10**5
    path = pack(tmp_path / "net.har", files_of(hn, {}) | {"net.npz": packed.getvalue()})
    assert read_har(path).weights
    monkeypatch.setattr(har_module, "MAX_WEIGHT_BYTES", 10**6)
    with pytest.raises(RequestError, match=r"net\.npz unpacks to more than"):
        read_har(path)


def test_pickles_are_never_opened(tmp_path):
    hn, _ = small_network()
    files = files_of(hn, {}) | {"net.npz": npz({"net/conv1/kernel:0": np.array([{}], dtype=object)})}
    with pytest.raises(RequestError, match=r"net\.npz is no \.npz of plain arrays: Object arrays cannot be loaded"):
        read_har(pack(tmp_path / "net.har", files))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is no HAR, which is an uncompressed tar archive, or it is damaged: empty file"),
        (b"no tar at all" * 100, "is no HAR, which is an uncompressed tar archive, or it is damaged"),
        (bytes(10240), r"holds no \.hn file"),
    ],
)
def test_files_of_another_kind(content, match, tmp_path):
    path = tmp_path / "net.har"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=match):
        read_har(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        read_har(tmp_path / "none.har")
    with pytest.raises(RequestError, match="is no file: name a HAR"):
        read_har(tmp_path)


def spoilt(change):
    hn, _ = small_network()
    change(hn)
    return json.dumps(hn).encode()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"{", r"net\.hn is not JSON"),
        (b"[" * 100_000, r"net\.hn is not JSON"),
        (b"[]", r"net\.hn is JSON, but no object"),
        (b'{"layers": {}}', r"net\.hn has no layers"),
        (spoilt(lambda hn: hn["layers"].update({"net/conv1": 3})), "layer 'net/conv1' in net.hn has no type"),
        (spoilt(lambda hn: hn["layers"]["net/conv1"].update(input="x")), "input of layer 'net/conv1' is no list"),
        (spoilt(lambda hn: hn["layers"]["net/conv1"].update(input=["x"])), "is joined to 'x', which is not there"),
        (spoilt(lambda hn: hn["layers"]["net/conv1"].update(output_shapes=[["a"]])), "is no list of shapes"),
    ],
)
def test_graphs_that_are_malformed(text, match, tmp_path):
    hn, weights = small_network()
    with pytest.raises(RequestError, match=match):
        read_har(pack(tmp_path / "net.har", files_of(hn, weights) | {"net.hn": text}))


def test_cut_short(tmp_path):
    hn, weights = small_network()
    path = pack(tmp_path / "net.har", files_of(hn, weights))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"PK") + 100])  # in the middle of the weights
    with pytest.raises(RequestError, match=r"cut short|damaged"):
        read_har(path)


def test_damage_never_gets_beyond_one_line(tmp_path):
    hn, weights = small_network()
    path = pack(tmp_path / "net.har", files_of(hn, weights))
    whole, rng, said = path.read_bytes(), random.Random(0), []
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            read_har(path)
        except RequestError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in line for line in said)
