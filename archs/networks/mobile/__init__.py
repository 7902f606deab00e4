"""Networks of depthwise convolutions and channel shuffles, made for few multiply-adds."""
