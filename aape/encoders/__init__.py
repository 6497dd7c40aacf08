"""Ready encoders: `m2d` (M2D and ViTs of its shape), `hub` (transformers and timm models by name)."""
