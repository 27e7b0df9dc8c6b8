"""Names that look secret, and those that only resemble them."""

from __future__ import annotations

import pytest

from prefect_executions.methods.secrets import SECRET_NAMES, is_withheld, secret_name


@pytest.mark.parametrize(
    "name",
    [
        *SECRET_NAMES,
        *(name.replace(" ", "_") for name in SECRET_NAMES),
        *("db_password", "DB_PASSWORD", "dbPassword", "rootpassword", "password1", "password_2", "passwords"),
        *("apiKey", "APIKey", "apikey", "x-api-key", "X-Api-Key", "api_keys", "openai.api_key", "api_key_value"),
        *("token", "hf_token", "accessToken", "access_token", "authtoken", "OAuthToken", "token_value", "idToken"),
        *("aws_secret_access_key", "AccountKey", "ssh-key", "privateKey", "client_secret", "clientsecret", "secrets"),
        *(
            "Authorization",
            "Proxy-Authorization",
            "cookies",
            "Set-Cookie",
            "credentials",
            "connectionString",
            "user_pwd",
        ),
    ],
)
def test_a_secret_name(name):
    assert secret_name(name) is not None
    assert is_withheld(name, "s3cret-value")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "tokens",
            "max_tokens",
            "maxTokens",
            "tokenizer",
            "token_count",
            "token_id",
            "token_url",
            "tokenize",
            "n_tokens",
        ),
        *("pad_token", "eos_token", "bosToken", "mask_token", "stop_token", "special_token", "next_token"),
        *("key", "keys", "n_keys", "sort_key", "primary_key", "public_key", "foreign_key", "key_column", "monkey"),
        *("keyword", "keywords", "keyboard", "turkey", "access_key_id", "api_key_env", "api_version"),
        *("password_file", "password_length", "passenger", "pass", "band_pass", "compass", "passage", "secretary"),
        *("secret_name", "cookie_policy", "authority", "author", "auth", "jwt_issuer", "bearer_id", "string", "value"),
        *("", "_", "1", "ключ", "n", "seed", "salt", "session"),
    ],
)
def test_a_name_that_only_resembles_one(name):
    assert secret_name(name) is None
    assert not is_withheld(name, "a text of some length")


@pytest.mark.parametrize(
    ("name", "value", "withheld"),
    [
        ("password", None, False),
        ("password", "", False),
        ("password", True, False),
        ("use_token", False, False),
        ("token", "env:THE_TOKEN", False),
        ("token", 50256, False),
        ("num_api_keys", 3, False),
        ("password", 12345678, True),
        ("password", "x", True),
        ("passwords", ["a", "b"], True),
        ("credentials", {"user": "ada"}, True),
        ("cookies", {}, False),
    ],
)
def test_values_that_cannot_be_secrets_stay(name, value, withheld):
    assert is_withheld(name, value) is withheld


def test_the_operator_adds_names():
    assert not is_withheld("lucky_number", 7)
    assert is_withheld("luckyNumber", 7, ("lucky number",))
    assert is_withheld("my_lucky_number", 7, ("lucky_number",))
    assert not is_withheld("lucky_numbers", 7, ("lucky number",))
