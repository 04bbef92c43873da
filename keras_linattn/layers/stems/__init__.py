"""What comes before and after attention: embedding, merging, pooling."""
