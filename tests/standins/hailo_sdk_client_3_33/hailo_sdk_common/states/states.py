class InvalidStateException(Exception):
    pass
