import torch as th

from benchmarks.contestants.trust_region import project


def test_gradients_that_raise_the_kl_too_much_are_projected():
    g = th.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    # k^T g is 10, 1, -10 and 0
    k = th.tensor([[2.0, 1.0], [-1.0, 1.0], [-2.0, -1.0], [0.0, 0.0]])
    z = project(g, k, delta=5.0)
    # (10 - 5) / (2^2 + 1^2) = 1, and (3, 4) - (2, 1) = (1, 3), for which k^T z = 2 + 3 = 5
    assert z.tolist() == [[1, 3], [3, 4], [3, 4], [3, 4]]
    # (1 - 0.5) / 2 = 0.25, and (3, 4) - 0.25 * (-1, 1) = (3.25, 3.75)
    assert project(g, k, delta=0.5)[1].tolist() == [3.25, 3.75]
