"""How many bytes a training step needs, moment by moment, before any of them is allocated.

tracker   counts every allocation and free of the tensors that operators return, real or fake
trace     what was counted, as a function of the batch size: live bytes by category, peak, roofline cost
simulate  optimizer steps on FakeTensors through the trainer's own loss, optimizer and autocast
replay    operators that have run before, from memory
compiled  the same steps through the graphs that torch.compile cuts
fused     what this package's own convolutions do within themselves
cuda      what a GPU allocates beside those tensors: workspaces, layout copies, reserves, context
sharding  what several GPUs change: DDP's buckets, ZeRO's shards
"""
