"""How many bytes a training step needs, moment by moment, before any of them is allocated: simulated on FakeTensors
through the trainer's own loss and optimizer, or through the graphs that torch.compile cuts; what a GPU allocates
beside tensors, and what several GPUs change."""
