"""Everything that exists once per mesh: the certificate authority."""
