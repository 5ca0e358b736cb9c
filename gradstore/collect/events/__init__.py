"""Events: the timestep and the noise of every draw."""
