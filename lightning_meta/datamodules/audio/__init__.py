"""Classes of sounds, which algorithms see as pictures of their spectra."""
