import torch
from torch.nn import functional as F

from penjing.train.mixing import cutmix, mixup, soft

CPU = torch.device("cpu")


def test_mixup_gives_every_sample_the_larger_share_of_itself() -> None:
    torch.manual_seed(0)
    x = torch.eye(8).reshape(8, 1, 8, 1)  # sample i holds a one at place i, so that shares can be read off
    found = mixup(8, 0.5, CPU)(x)
    share = found[torch.arange(8), 0, torch.arange(8), 0]
    assert (share >= 0.5).all()
    assert share.min() < 0.95  # control: something was mixed
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(8))


def test_mixup_mixes_inputs_and_labels_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    mix = mixup(6, 0.9, CPU)
    torch.testing.assert_close(mix(2 * x), 2 * mix(x))
    assert not torch.allclose(mix(x), x)


def test_what_has_no_batch_is_left_alone() -> None:
    for mix in (mixup(4, 0.5, CPU), cutmix(4, (5, 5), CPU)):
        for value in (torch.tensor(0.1), torch.arange(4), torch.randn(3, 2), None):
            assert mix(value) is value


def test_cutmix_pastes_one_box_and_mixes_labels_by_its_volume() -> None:
    torch.manual_seed(3)
    x = torch.arange(6.0)[:, None, None, None].expand(6, 2, 8, 10).contiguous()
    labels = torch.eye(6)
    for _ in range(20):
        mix = cutmix(6, (8, 10), CPU)
        found, said = mix(x), mix(labels)
        foreign = found != x
        moved = [i for i in range(6) if foreign[i].any()]
        for i in moved:
            where = foreign[i, 0].nonzero()
            low, high = where.min(0).values, where.max(0).values + 1
            assert len(where) == int((high - low).prod())  # a box, filled
            source = int(found[i, 0][foreign[i, 0]][0])
            torch.testing.assert_close(said[i, source], torch.tensor(len(where) / 80))
        torch.testing.assert_close(said.sum(1), torch.ones(6))


def test_cutmix_takes_maps_of_any_rank_and_cuts_label_maps_alike() -> None:
    torch.manual_seed(1)
    for sizes in ((7,), (5, 6), (4, 3, 5)):
        x = torch.randn(4, 2, *sizes)
        mix = cutmix(4, sizes, CPU)
        cut = mix(x) != x
        labels = torch.arange(4).view(4, *[1] * len(sizes)).expand(4, *sizes).contiguous()
        changed = mix(labels) != labels
        assert torch.equal(changed, cut[:, 0])


def test_soft_labels_are_probabilities() -> None:
    target = torch.tensor([[0, 2], [1, 1]])  # (N, positions)
    found = soft(target, 4, 0.2)
    assert found.shape == (2, 4, 2)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 2))
    assert torch.equal(found.argmax(1), target)
    torch.testing.assert_close(found[0, :, 1], torch.tensor([0.05, 0.05, 0.85, 0.05]))
    floats = torch.randn(3)
    assert soft(floats, 4, 0.2) is floats


def test_positions_without_a_class_get_no_probability() -> None:
    target = torch.tensor([[0, 2, 255, -100]])
    found = soft(target, 3, 0.3)
    assert found.shape == (1, 3, 4)
    torch.testing.assert_close(found.sum(1), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))


def test_labels_are_not_taken_for_positions() -> None:
    torch.manual_seed(0)
    labels = torch.eye(4)
    found = cutmix(4, (4,), CPU)(labels, labels=True)
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_positions_that_count_count_as_they_do_for_class_numbers() -> None:
    output, target = torch.randn(4, 5, 3), torch.randint(0, 5, (4, 3))
    target[0], target[2, 1] = -100, -100
    assert torch.allclose(F.cross_entropy(output, target), F.cross_entropy(output, soft(target, 5, 0.0, as_a_mean=True)))
    smoothed = F.cross_entropy(output, target, label_smoothing=0.1)
    assert torch.allclose(smoothed, F.cross_entropy(output, soft(target, 5, 0.1, as_a_mean=True)))
    assert not soft(torch.full((2, 3), -100), 5, 0.0, as_a_mean=True).any()
