"""Models, images, vectors and servers for benchmarks."""
