"""What a bundle is: the contract of its graphs, codebook, classes, manifest, archive."""
