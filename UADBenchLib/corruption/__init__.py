"""What training does to healthy slices: augmentation, coarse noise, synthetic anomalies. Parameters are drawn apart
from their use."""
