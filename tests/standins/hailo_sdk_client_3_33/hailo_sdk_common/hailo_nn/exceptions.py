class UnsupportedModelError(Exception):
    pass
