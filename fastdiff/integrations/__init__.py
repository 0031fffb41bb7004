"""fastdiff inside other libraries; each is imported only by those who have it."""
