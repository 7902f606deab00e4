"""Mixtures of two images: shares, rectangles and labels are the papers', partners are neighbours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.data.augment.mixing import DRAWS, beta, mix_images, mixtures, partners, soft_labels
from engine.step.loss import loss_and_hits


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, DRAWS))


def test_shares_are_of_the_beta_distribution():
    for alpha in (0.2, 0.8, 1.0, 4.0):
        shares = beta(drawn(40000)[:, 2], alpha)
        assert abs(shares.mean() - 0.5) < 0.01
        assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_mixup_is_the_papers_formula():
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    how = mixtures(drawn(6), 6, 0.8, 0.0, 1.0, 8, 8)
    assert how.any and (how.own < 1).all()
    mixed, soft = mix_images(images, how), soft_labels(labels, how, 7)
    for one in range(6):
        share, other = float(how.own[one]), one ^ 1
        torch.testing.assert_close(mixed[one], share * images[one] + (1 - share) * images[other])
        expected = share * F.one_hot(labels[one], 7) + (1 - share) * F.one_hot(labels[other], 7)
        torch.testing.assert_close(soft[one], expected)


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 24).contiguous()
    how = mixtures(drawn(8, 3), 8, 0.0, 1.0, 1.0, 16, 24)
    mixed = mix_images(images, how)
    for one in range(8):
        own = (mixed[one] == one).float().mean().item()
        assert (mixed[one] == one).logical_or(mixed[one] == (one ^ 1)).all()
        assert own == pytest.approx(float(how.own[one]), abs=1e-6)
        top, bottom, left, right = how.box[one]
        assert (mixed[one, :, top:bottom, left:right] == (one ^ 1)).all()


def test_both_kinds_alternate_and_some_stay_whole():
    how = mixtures(drawn(4000), 4000, 0.8, 1.0, 0.6, 32, 32)
    cut = how.box[:, 1] > how.box[:, 0]
    assert abs((how.own < 1).mean() - 0.6) < 0.05 and abs(cut.mean() - 0.3) < 0.05


@pytest.mark.parametrize("count", [5, 4])
def test_an_image_without_a_partner_stays_whole(count):
    """The last of an odd number, and fillers at the end of a share."""
    images, labels = torch.rand(5, 3, 8, 8), torch.arange(5)
    how = mixtures(drawn(5), count, 0.8, 0.0, 1.0, 8, 8)
    assert how.own[4] == 1 and (how.own[:4] < 1).all()
    assert torch.equal(mix_images(images, how)[4], images[4])
    assert torch.equal(soft_labels(labels, how, 5)[4], F.one_hot(labels, 5)[4].float())
    assert partners(labels).tolist() == [1, 0, 3, 2, 4]


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    logits, labels, weights = torch.randn(6, 7), torch.arange(6), torch.ones(6)
    how = mixtures(drawn(6), 6, 0.8, 0.0, 1.0, 8, 8)
    soft = soft_labels(labels, how, 7)
    for smoothing in (0.0, 0.1):
        loss, hits = loss_and_hits(logits, soft, weights, smoothing)
        each = [
            F.cross_entropy(logits, those, reduction="none", label_smoothing=smoothing)
            for those in (labels, partners(labels))
        ]
        own = torch.from_numpy(how.own)
        torch.testing.assert_close(loss, (own * each[0] + (1 - own) * each[1]).sum())
    larger = torch.where(own > 0.5, labels, partners(labels))
    assert hits.item() == (logits.argmax(1) == larger).sum().item()
    whole, right = loss_and_hits(logits, F.one_hot(labels, 7).float(), weights, 0.0)
    torch.testing.assert_close((whole, right), loss_and_hits(logits, labels, weights, 0.0))
