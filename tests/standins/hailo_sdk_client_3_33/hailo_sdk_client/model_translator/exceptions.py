class ParsingWithRecommendationException(Exception):
    pass
