# Packaging is not part of what is tried with the stand-in.
