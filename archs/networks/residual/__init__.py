"""Networks with shortcuts: sums (ResNet and its kin, Darknet-53) and concatenations (DenseNet)."""
