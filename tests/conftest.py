"""One thread for the tests and for the programs they start: threads that wait for each other cost more."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
torch.set_num_threads(1)
