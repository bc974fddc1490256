"""What a decoder is (spec), where its weights come from (checkpoint), and OPT's adapter."""
