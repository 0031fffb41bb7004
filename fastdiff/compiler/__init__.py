"""A model's graph, captured by Dynamo, with its operations replaced by fastdiff's."""
