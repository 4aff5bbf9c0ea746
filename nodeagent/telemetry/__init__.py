"""What became of connections that meet no proxy: kernel records in, log lines, metrics and listings out."""
