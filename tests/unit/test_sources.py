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


ODD = ["s\u200bcret", "s\ncret", "s\x00cret", "s\u202ecret", "s\u00a0cret", "s\ufeffcret", "s\u00adcret", "s\u3164cret", "s\ufe0fcret",
       "s\udcffcret", '"s3cret"', "'s3cret'", "`s3cret`", "s3cret\\n", "s3cret\\r\\n"]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_a_secret_that_no_vendor_gave_is_told_at_once_and_not_shown(settings: Settings, text: str) -> None:
    for given in (text, f" {text}\n"):
        with pytest.raises(BadSettings, match="secret shop ") as caught:
            sources.plain_secret(given, name="shop")
        assert "cret" not in str(caught.value).removeprefix("secret shop")
    with pytest.raises(BadSettings, match="secret shop"):
        sources.store_secret(settings, "shop", text)


@pytest.mark.parametrize(
    "text",
    ["hush", "correct horse battery", "ação-ção", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "ana:pa ss", "a'b\"", "🔑"],
)
def test_a_secret_is_trimmed_of_what_can_not_be_seen_and_else_left_as_it_is(text: str) -> None:
    for around in ("", "\n", "\r\n", " ", "\ufeff", "\u200b", "\u00a0\t", "\u2060\u3000", "\x00", "\u3164"):
        assert sources.plain_secret(around + text + around, name="x") == text
    assert sources.plain_secret(" \u200b\n", name="x") == ""


def test_a_blank_secret_is_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.add(settings, Source(name="shop", connector="shopify"))
    monkeypatch.setenv("CAUDAL_SECRET_SHOP", " \n\u200b")
    with pytest.raises(BadSettings, match="has no secret"):
        sources.load(settings).secrets("shop")
    sources.store_secret(settings, "shop", "in the file")
    assert sources.load(settings).secrets("shop") == ("in the file",)


def test_user_and_password_need_a_colon(settings: Settings) -> None:
    sources.add(settings, Source(name="shop", connector="shopify", auth="basic"))
    sources.store_secret(settings, "shop", "a password alone")
    with pytest.raises(BadSettings, match="user:password"):
        sources.load(settings).secrets("shop")


def test_files_may_begin_with_a_byte_order_mark(settings: Settings) -> None:
    settings.config_file.write_text('\ufeff[sources.shop]\nconnector = "shopify"\n', encoding="utf-8")
    path = sources.secrets_path(settings)
    path.parent.mkdir()
    path.write_text('\ufeff[secrets]\r\nshop = "s3cret"\r\n', encoding="utf-8")
    assert sources.load(settings).secrets("shop") == ("s3cret",)
    assert sources.add(settings, Source(name="crm", connector="hubspot"))
    assert sources.store_secret(settings, "crm", "other")
    assert sorted(sources.load(settings)) == ["crm", "shop"]


def test_a_dropped_secret_is_gone_unless_another_source_uses_it(settings: Settings) -> None:
    sources.add(settings, Source(name="shop", connector="shopify", secrets=("shop", "both")))
    sources.add(settings, Source(name="other", connector="shopify", secrets=("both",)))
    for name in ("shop", "both", "unrelated"):
        sources.store_secret(settings, name, f"{name}-secret")
    sources.remove(settings, "shop")
    assert sources.drop_secrets(settings, ("shop", "both", "never")) == ("shop",)
    text = sources.secrets_path(settings).read_text()
    assert "shop-secret" not in text
    assert "both-secret" in text
    assert "unrelated-secret" in text
    assert stat.S_IMODE(sources.secrets_path(settings).stat().st_mode) == 0o600
