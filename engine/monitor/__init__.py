"""What is watched while a run goes on: the GPU, the host, one step's time, and the bar on the screen."""
