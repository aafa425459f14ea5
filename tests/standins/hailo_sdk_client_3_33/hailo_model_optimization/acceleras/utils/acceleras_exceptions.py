class BadInputsShape(Exception):
    pass


class NegativeSlopeExponentNonFixable(Exception):
    pass


class AccelerasResourceError(Exception):
    pass
