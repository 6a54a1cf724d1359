"""The codec: values as tagged JSON text, and back."""
