"""A matrix that acts on every flattened slice of a stack."""


def projection(matrix):
    return lambda x: x.flatten(1) @ matrix.T
