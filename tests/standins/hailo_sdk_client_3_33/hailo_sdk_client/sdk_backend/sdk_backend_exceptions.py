class BackendAllocatorException(Exception):
    pass


class BackendScriptParserException(Exception):
    pass


class AllocatorScriptParserException(Exception):
    pass


class BackendRuntimeException(Exception):
    pass


class BackendValueError(Exception):
    pass


class NMSConfigPostprocessException(Exception):
    pass
