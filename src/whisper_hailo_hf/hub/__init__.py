"""What travels to and from the Hub: files made of the encoder, code for `trust_remote_code`, whole folders."""
