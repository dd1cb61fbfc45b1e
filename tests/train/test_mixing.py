import torch

from penjing.train.mixing import mixed


def test_every_sample_keeps_the_larger_share_and_targets_that_are_classes_stay() -> None:
    torch.manual_seed(0)
    x = torch.eye(8).reshape(8, 1, 8, 1)  # sample i holds a one at place i, so that shares can be read off
    (found,), target = mixed((x,), torch.arange(8), 0.5)
    share = found[torch.arange(8), 0, torch.arange(8), 0]
    assert (share >= 0.5).all()
    assert share.min() < 0.95  # control: something was mixed
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(8))
    assert target.tolist() == list(range(8))


def test_float_targets_and_further_inputs_are_mixed_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    (a, b), target = mixed((x, 2 * x), 3 * x, 0.9)
    torch.testing.assert_close(b, 2 * a)
    torch.testing.assert_close(target, 3 * a)
    assert not torch.allclose(a, x)


def test_what_has_no_batch_is_left_alone() -> None:
    scalar, counts = torch.tensor(0.1), torch.arange(4)
    (_, s, c), target = mixed((torch.randn(4, 2), scalar, counts), None, 0.5)
    assert s is scalar
    assert c is counts
    assert target is None
