"""What the model families are made of: blocks, attention, transformers, the U-Net's frame; and counting of costs."""
