"""A CNN for MNIST with BatchNorm and max pooling, converted: the converter's proof on images that it never saw."""
