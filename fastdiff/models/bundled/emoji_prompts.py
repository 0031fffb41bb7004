"""Prompts that the bundled text-conditional model is shown, tested and profiled with: names of emoji."""

EMOJI_PROMPTS = (
    "red apple", "grinning face", "dog face", "pizza", "rocket", "red heart", "sunflower", "flag japan",
    "cat face", "banana", "automobile", "house", "soccer ball", "crown", "octopus", "ghost",
    "snowman", "blue heart", "green book", "hot beverage", "strawberry", "umbrella", "bicycle", "key",
)  # fmt: skip
