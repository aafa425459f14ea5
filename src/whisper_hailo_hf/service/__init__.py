"""An encoder served over the network, states collected from it, and decoders adapted to them."""
