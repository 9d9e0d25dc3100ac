"""From a raw corpus to token datasets: decode, resize, encode on the device, write records."""
