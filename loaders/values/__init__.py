"""Values of classes: taken apart into what is stored, and made again."""
