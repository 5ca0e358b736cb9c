"""Models, images, vectors and servers that benchmarks measure with."""
