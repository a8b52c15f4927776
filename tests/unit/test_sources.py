from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from caudal import sources
from caudal.errors import BadSettings, UnknownSource
from caudal.settings import Settings
from caudal.sources import Source

COMMENTED = """\
# Our systems. Ask Ana before you change anything.

[sources.crm]   # the CRM
connector = "hubspot"
priority = 10  # wins over the shop

[other]
kept = true
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", config_file=tmp_path / "caudal.toml", secrets_file=None)


def test_no_file_means_no_sources(settings: Settings) -> None:
    assert len(sources.load(settings)) == 0


def test_a_source_reads_as_written(settings: Settings) -> None:
    settings.config_file.write_text('[sources.shop-br]\nconnector = "shopify"\nsecrets = ["new", "old"]\n')
    assert sources.load(settings)["shop-br"] == Source(name="shop-br", connector="shopify", secrets=("new", "old"))


def test_a_source_without_secrets_uses_the_one_of_its_own_name(settings: Settings) -> None:
    settings.config_file.write_text('[sources.shop-br]\nconnector = "shopify"\n')
    assert sources.load(settings)["shop-br"].secrets == ("shop-br",)


def test_an_unknown_source_is_an_error_that_names_it(settings: Settings) -> None:
    with pytest.raises(UnknownSource, match="'nope'"):
        sources.load(settings)["nope"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[sources.shop]\n", "sources.shop.connector"),
        ('[sources.shop]\nconnector = "shopify"\nprioritty = 1\n', "sources.shop.prioritty"),
        ('[sources.shop]\nconnector = "shopify"\npriority = "high"\n', "sources.shop.priority"),
        ('[sources.Shop_BR]\nconnector = "shopify"\n', "sources.Shop_BR.name"),
        ('[sources]\nshop = "shopify"\n', "sources.shop"),
        ('[sources.shop]\nconnector = "x"\nauth = "header"\n', "sources.shop"),
        ("sources = 3\n", "sources"),
        ("[sources.shop\n", "line 1"),
    ],
)
def test_a_bad_file_is_reported_with_file_and_key(settings: Settings, text: str, named: str) -> None:
    settings.config_file.write_text(text)
    with pytest.raises(BadSettings) as caught:
        sources.load(settings)
    assert str(settings.config_file) in str(caught.value)
    assert named in str(caught.value)


def test_adding_and_removing_keeps_comments_and_everything_else(settings: Settings) -> None:
    settings.config_file.write_text(COMMENTED)
    assert sources.add(settings, Source(name="shop-br", connector="shopify"))
    assert sources.load(settings)["crm"].priority == 10
    assert sources.load(settings)["shop-br"].connector == "shopify"
    text = settings.config_file.read_text()
    assert all(line in text for line in COMMENTED.splitlines())
    assert sources.remove(settings, "shop-br")
    assert settings.config_file.read_text().strip() == COMMENTED.strip()


def test_adding_a_first_source_makes_a_readable_file(settings: Settings) -> None:
    sources.add(settings, Source(name="shop", connector="shopify"))
    sources.add(settings, Source(name="crm", connector="hubspot", priority=5))
    assert settings.config_file.read_text() == (
        '[sources.shop]\nconnector = "shopify"\nsecrets = ["shop"]\n\n'
        '[sources.crm]\nconnector = "hubspot"\nsecrets = ["crm"]\npriority = 5\n'
    )


def test_adding_twice_changes_nothing(settings: Settings) -> None:
    source = Source(name="shop", connector="shopify", public_url="https://example.com/hook", max_body_bytes=10)
    assert sources.add(settings, source)
    before = settings.config_file.read_bytes()
    assert not sources.add(settings, source)
    assert settings.config_file.read_bytes() == before


def test_adding_again_with_other_values_replaces_them(settings: Settings) -> None:
    sources.add(settings, Source(name="shop", connector="shopify", priority=3))
    assert sources.add(settings, Source(name="shop", connector="shopify", max_body_bytes=4096))
    assert sources.load(settings)["shop"] == Source(name="shop", connector="shopify", max_body_bytes=4096)


def test_removing_what_is_not_there_changes_nothing(settings: Settings) -> None:
    assert not sources.remove(settings, "shop")
    assert not settings.config_file.exists()


def test_sources_in_scattered_tables_can_be_changed(settings: Settings) -> None:
    settings.config_file.write_text(
        '[sources.a]\nconnector = "shopify"\n[other]\nx = 1\n[sources.b]\nconnector = "hubspot"\n'
    )
    sources.add(settings, Source(name="c", connector="zendesk"))
    sources.remove(settings, "a")
    assert sorted(sources.load(settings)) == ["b", "c"]


def test_sources_in_inline_tables_can_be_changed(settings: Settings) -> None:
    settings.config_file.write_text('[sources]\na = { connector = "shopify" }\nb = { connector = "hubspot" }\n')
    sources.add(settings, Source(name="a", connector="shopify", priority=2))
    sources.add(settings, Source(name="c", connector="zendesk"))
    sources.remove(settings, "b")
    assert sorted(sources.load(settings)) == ["a", "c"]
    assert sources.load(settings)["a"].priority == 2


def test_a_failed_write_leaves_the_old_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.add(settings, Source(name="shop", connector="shopify"))
    before = settings.config_file.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadSettings, match="No space left"):
        sources.add(settings, Source(name="crm", connector="hubspot"))
    assert settings.config_file.read_bytes() == before
    assert [path.name for path in settings.config_file.parent.iterdir()] == [settings.config_file.name]


def test_secrets_come_from_the_environment_and_from_the_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(name="shop-br", connector="shopify", secrets=("shop-br", "shop-br-old"))
    sources.add(settings, source)
    sources.store_secret(settings, "shop-br-old", "from the file")
    sources.store_secret(settings, "shop-br", "loses")
    monkeypatch.setenv("CAUDAL_SECRET_SHOP_BR", "from the environment")
    assert sources.load(settings).secrets("shop-br") == ("from the environment", "from the file")


def test_one_of_two_secrets_is_enough(settings: Settings) -> None:
    sources.add(settings, Source(name="shop", connector="shopify", secrets=("new", "old")))
    sources.store_secret(settings, "old", "s3cret")
    assert sources.load(settings).secrets("shop") == ("s3cret",)


def test_a_source_without_any_secret_says_which_variable_to_set(settings: Settings) -> None:
    sources.add(settings, Source(name="shop-br", connector="shopify"))
    loaded = sources.load(settings)
    with pytest.raises(BadSettings, match="CAUDAL_SECRET_SHOP_BR"):
        loaded.secrets("shop-br")


def test_the_secrets_file_is_readable_by_its_owner_only_and_not_shown(settings: Settings) -> None:
    sources.add(settings, Source(name="shop", connector="shopify"))
    sources.store_secret(settings, "shop", "s3cret")
    assert stat.S_IMODE(sources.secrets_path(settings).stat().st_mode) == 0o600
    loaded = sources.load(settings)
    assert "s3cret" not in settings.config_file.read_text() + repr(loaded) + str(loaded) + repr(loaded["shop"])


def test_a_configured_secrets_file_that_is_missing_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"gone\.toml"):
        sources.load(settings.model_copy(update={"secrets_file": tmp_path / "gone.toml"}))


def test_a_secret_that_is_no_string_is_an_error_without_its_value(settings: Settings) -> None:
    path = sources.secrets_path(settings)
    path.parent.mkdir()
    path.write_text("[secrets]\nshop = 90210\n")
    with pytest.raises(BadSettings, match=r"secrets\.shop") as caught:
        sources.load(settings)
    assert "90210" not in str(caught.value)


def test_a_changed_file_is_noticed_once(settings: Settings) -> None:
    watch = sources.Watch(settings)
    assert watch.changed()
    assert not watch.changed()
    sources.add(settings, Source(name="shop", connector="shopify"))
    assert watch.changed()
    sources.store_secret(settings, "shop", "s3cret")
    assert watch.changed()
    assert not watch.changed()
