"""
The minibatch step of an update (forward, backward, clipping of the gradient, Adam) as one compiled function, and rollouts in
NumPy: up to rounding the numbers of SB3. Without this folder, ``compile=False`` remains.
"""
