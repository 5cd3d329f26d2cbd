//! The rules, and where they come from.
//!
//! Names and formats follow gitleaks (MIT, <https://github.com/gitleaks/gitleaks>), whose rules cite the vendors; `source`
//! is the file there, or another page. The patterns are ours: only formats with a prefix or a frame of their own are
//! looked for, because a false alarm damages what is learned. "password=…" is such a frame; a password in a sentence is not found.

/// A kind of secret.
pub(super) struct Rule {
    /// Its name, which stands in the text instead of the secret.
    pub id: &'static str,
    /// What it looks like; the first group that is there, if there are groups, is the secret.
    pub pattern: &'static str,
    /// Where its format is described.
    pub source: &'static str,
    /// What examples have in its place.
    pub placeholders: &'static [&'static str],
    /// Bits per character that it has at least, where it differs from the usual bound.
    pub min_entropy: Option<f64>,
    /// Whether letters and digits change in it as in what was drawn: "v2" and "uint64" are names.
    pub mixed: bool,
}

/// Returns a file of gitleaks' rules.
macro_rules! gitleaks {
    ($file:literal) => {
        concat!(
            "https://github.com/gitleaks/gitleaks/blob/master/cmd/generate/config/rules/",
            $file
        )
    };
}

/// What a secret is assigned to.
macro_rules! holder {
    () => {
        r#"\b[0-9a-z_.-]{0,40}(?:password|passwd|passphrase|pass|pwd|secret|token|(?:api|secret|access|private|auth)[_-]?key)"#
    };
}

/// A value without quotes: a path, a variable, a type or an expression begins or goes on otherwise.
macro_rules! bare {
    () => {
        r#"([0-9a-z][0-9a-z+/~!@#^*-]{7,127}={0,2})"#
    };
}

/// In quotes; behind an equals sign; behind a colon at the end of a line, as in YAML, where a parameter's type has a comma; and
/// behind an option of a command.
const ASSIGNED: &str = concat!(
    "(?i)",
    holder!(),
    r#"["']?[ \t]{0,3}(?::?=|:|=>)[ \t]{0,3}["'`]([^\s"'`<>$(){}]{8,128})["'`]|"#,
    holder!(),
    r#"["']?[ \t]{0,3}:?=[ \t]{0,3}"#,
    bare!(),
    r#"(?:[\s;&,"'`]|\.?\z|\.\s)|"#,
    r#"(?m:^)[ \t-]{0,20}(?:[a-z]+[ \t]){0,2}"#,
    holder!(),
    r#":[ \t]{1,3}"#,
    bare!(),
    r#"\.?[ \t]*(?:\r|\n|\z)|"#,
    r#"--(?:password|passwd|pass|token|secret|api-key)[ \t]{1,3}"#,
    bare!(),
    r#"(?:[\s;&,"'`]|\.?\z|\.\s)"#
);

const fn rule(id: &'static str, pattern: &'static str, source: &'static str) -> Rule {
    Rule { id, pattern, source, placeholders: &[], min_entropy: None, mixed: false }
}

/// What is looked for, by name.
pub(super) const RULES: &[Rule] = &[
    rule(
        "1password-secret-key",
        r"\bA3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}\b",
        gitleaks!("1password.go"),
    ),
    rule("age-secret-key", r"\bAGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}\b", gitleaks!("age.go")),
    rule(
        "anthropic-api-key",
        r"\bsk-ant-[a-z]{2,8}[0-9]{2}-[0-9A-Za-z_-]{80,}",
        gitleaks!("anthropic.go"),
    ),
    rule("atlassian-api-token", r"\bATATT3[0-9A-Za-z_=-]{180,}", gitleaks!("atlassian.go")),
    rule(
        "aws-access-key",
        r"\b(?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z2-7]{16}\b",
        gitleaks!("aws.go"),
    ),
    rule(
        "azure-client-secret",
        r"\b[0-9A-Za-z_~.]{3}[0-9]Q~[0-9A-Za-z_~.-]{31,34}",
        gitleaks!("azure.go"),
    ),
    rule(
        "crates-io-token",
        r"\bcio[0-9A-Za-z]{32}\b",
        "https://github.com/rust-lang/crates.io/blob/main/crates/crates_io_database/src/utils/token.rs",
    ),
    rule("databricks-api-token", r"\bdapi[0-9a-f]{32}(?:-[0-9])?\b", gitleaks!("databricks.go")),
    rule("digitalocean-token", r"\bdo[opr]_v1_[0-9a-f]{64}\b", gitleaks!("digitalocean.go")),
    rule("doppler-api-token", r"\bdp\.pt\.[0-9A-Za-z]{43}\b", gitleaks!("doppler.go")),
    rule(
        "dynatrace-api-token",
        r"\bdt0c01\.[0-9A-Z]{24}\.[0-9A-Z]{64}\b",
        gitleaks!("dynatrace.go"),
    ),
    rule("gcp-api-key", r"\bAIza[0-9A-Za-z_-]{35}", gitleaks!("gcp.go")),
    rule(
        "github-fine-grained-pat",
        r"\bgithub_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}\b",
        gitleaks!("github.go"),
    ),
    rule("github-token", r"\bgh[oprsu]_[0-9A-Za-z]{36,251}\b", gitleaks!("github.go")),
    rule(
        "gitlab-token",
        r"\bgl(?:pat|dt|rt|ptt|soat|cbt|ft)-[0-9A-Za-z_-]{20,}(?:\.[0-9a-z]{2}[0-9a-z]{7})?",
        gitleaks!("gitlab.go"),
    ),
    rule(
        "grafana-service-account-token",
        r"\bglsa_[0-9A-Za-z]{32}_[0-9A-Fa-f]{8}\b",
        gitleaks!("grafana.go"),
    ),
    rule(
        "hashicorp-terraform-token",
        r"\b[0-9A-Za-z]{14}\.atlasv1\.[0-9A-Za-z_=-]{60,}",
        gitleaks!("hashicorp.go"),
    ),
    rule("huggingface-token", r"\bhf_[0-9A-Za-z]{34,40}\b", gitleaks!("huggingface.go")),
    rule(
        "jwt",
        r"\beyJ[0-9A-Za-z_-]{14,}\.eyJ[0-9A-Za-z_-]{14,}\.[0-9A-Za-z_-]{20,}",
        gitleaks!("jwt.go"),
    ),
    rule("linear-api-key", r"\blin_api_[0-9A-Za-z]{40}\b", gitleaks!("linear.go")),
    rule("new-relic-user-key", r"\bNRAK-[0-9A-Z]{27}\b", gitleaks!("newrelic.go")),
    rule("notion-api-token", r"\bntn_[0-9]{11}[0-9A-Za-z]{35}\b", gitleaks!("notion.go")),
    rule("npm-access-token", r"\bnpm_[0-9A-Za-z]{36}\b", gitleaks!("npm.go")),
    rule(
        "openai-api-key",
        r"\bsk-(?:(?:proj|svcacct|admin)-)?[0-9A-Za-z_-]{20,80}T3BlbkFJ[0-9A-Za-z_-]{20,}",
        gitleaks!("openai.go"),
    ),
    rule("postman-api-key", r"\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}\b", gitleaks!("postman.go")),
    rule(
        "private-key",
        // A key that was cut off is one too.
        r"-----BEGIN (?:[0-9A-Z]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----[\s\S]{64,}?(?:-----END (?:[0-9A-Z]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----|\z)",
        gitleaks!("privatekey.go"),
    ),
    rule("pypi-upload-token", r"\bpypi-AgEIcHlwaS5vcmc[0-9A-Za-z_-]{50,}", gitleaks!("pypi.go")),
    rule("rubygems-api-key", r"\brubygems_[0-9a-f]{48}\b", gitleaks!("rubygems.go")),
    rule(
        "sendgrid-api-key",
        r"\bSG\.[0-9A-Za-z_-]{22}\.[0-9A-Za-z_-]{43}",
        gitleaks!("sendgrid.go"),
    ),
    rule("sentry-org-token", r"\bsntrys_eyJ[0-9A-Za-z+/=_-]{80,}", gitleaks!("sentry.go")),
    rule("shopify-token", r"\bshp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}\b", gitleaks!("shopify.go")),
    rule(
        "sk-api-key",
        // DeepSeek, Moonshot and others that speak OpenAI's protocol.
        r"\bsk-[0-9A-Za-z]{32,64}\b",
        "https://github.com/trufflesecurity/trufflehog/blob/main/pkg/detectors/deepseek/deepseek.go",
    ),
    rule("slack-token", r"\bxox[abeoprs]-[0-9]{8,}-[0-9A-Za-z-]{12,}", gitleaks!("slack.go")),
    rule(
        "slack-webhook-url",
        r"\bhttps://hooks\.slack\.com/(?:services|triggers|workflows)/[0-9A-Za-z+/]{40,}",
        gitleaks!("slack.go"),
    ),
    rule(
        "stripe-secret-key",
        r"\b[rs]k_(?:live|prod|test)_[0-9A-Za-z]{16,100}\b",
        gitleaks!("stripe.go"),
    ),
    rule("telegram-bot-token", r"\b[0-9]{8,10}:AA[0-9A-Za-z_-]{33}", gitleaks!("telegram.go")),
    rule("twilio-api-key", r"\bSK[0-9a-f]{32}\b", gitleaks!("twilio.go")),
    Rule {
        placeholders: &["password", "passwd", "pass", "pwd", "secret", "token", "changeme", "xxx"],
        // Passwords are short.
        min_entropy: Some(2.0),
        ..rule(
            "url-password",
            r"\b[a-z][0-9a-z+.-]{1,20}://[0-9A-Za-z._%+-]{1,64}:([0-9A-Za-z._%+~!*^-]{5,128})@[0-9A-Za-z\[]",
            "https://github.com/Yelp/detect-secrets/blob/master/detect_secrets/plugins/basic_auth.py",
        )
    },
    rule("vault-service-token", r"\bhvs\.[0-9A-Za-z_-]{90,}", gitleaks!("hashicorp_vault.go")),
    // The general one comes last: where another finds the same, its name says more.
    Rule {
        mixed: true,
        // Passwords are short.
        min_entropy: Some(2.5),
        ..rule("assigned-secret", ASSIGNED, gitleaks!("generic.go"))
    },
    Rule {
        mixed: true,
        ..rule(
            "bearer-token",
            r"(?i)\bbearer[ \t]{1,3}([0-9a-z._~+/-]{20,512}={0,2})",
            gitleaks!("curl.go"),
        )
    },
];

#[cfg(test)]
pub(super) mod tests {
    use super::super::{redact, scan};
    use super::*;

    /// Characters as a random key has them. Keys are put together here, so that none stands in this file.
    pub(crate) fn filler(length: usize) -> String {
        "kQ7xW2mR9tZ4pL8vB3nJ6hY5cD1fG0sA".chars().cycle().take(length).collect()
    }

    fn hex(length: usize) -> String {
        "0a1b2c3d4e5f69788796a5b4c3d2e1f0".chars().cycle().take(length).collect()
    }

    fn upper(length: usize) -> String {
        "Q7XW2MR4TZ5PL3VB6NJ".chars().cycle().take(length).collect()
    }

    /// For each rule a secret, and something alike that is none.
    pub(crate) fn samples() -> Vec<(&'static str, String, String)> {
        let mut all = some_samples();
        all.extend(more_samples());
        all
    }

    fn some_samples() -> Vec<(&'static str, String, String)> {
        let f = filler;
        vec![
            (
                "1password-secret-key",
                format!("A3-{}-{}-{}-{}-{}", upper(6), upper(11), upper(5), upper(5), upper(5)),
                format!("A3-{}", upper(6)),
            ),
            (
                "age-secret-key",
                format!(
                    "AGE-SECRET-KEY-1{}",
                    "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L".repeat(2).split_at(58).0
                ),
                "AGE-SECRET-KEY-1QPZ".into(),
            ),
            (
                "anthropic-api-key",
                format!("sk-ant-api03-{}AA", f(93)),
                "sk-ant-api03-your-key-here".into(),
            ),
            ("atlassian-api-token", format!("ATATT3{}", f(186)), format!("ATATT3{}", f(20))),
            ("aws-access-key", format!("AKIA{}", upper(16)), format!("AKIA{}", upper(12))),
            ("azure-client-secret", format!("aB28Q~{}", f(34)), format!("aB2Q~{}", f(34))),
            ("crates-io-token", format!("cio{}", f(32)), format!("cio{}", f(30))),
            ("databricks-api-token", format!("dapi{}", hex(32)), format!("dapi{}", f(32))),
            ("digitalocean-token", format!("dop_v1_{}", hex(64)), format!("dop_v1_{}", hex(40))),
            ("doppler-api-token", format!("dp.pt.{}", f(43)), format!("dp.st.{}", f(20))),
            (
                "dynatrace-api-token",
                format!("dt0c01.{}.{}", upper(24), upper(64)),
                format!("dt0c01.{}", upper(24)),
            ),
            ("gcp-api-key", format!("AIza{}", f(35)), format!("AIza{}", f(30))),
            (
                "github-fine-grained-pat",
                format!("github_pat_{}_{}", f(22), f(59)),
                "github_pat_token_goes_here".into(),
            ),
            ("github-token", format!("ghs_{}", f(36)), "ghs_your_token".into()),
            ("gitlab-token", format!("glpat-{}", f(20)), "glpat-your-token".into()),
            (
                "grafana-service-account-token",
                format!("glsa_{}_{}", f(32), hex(8)),
                format!("glsa_{}", f(32)),
            ),
            (
                "hashicorp-terraform-token",
                format!("{}.atlasv1.{}", f(14), f(67)),
                format!("{}.atlasv1.x", f(14)),
            ),
            (
                "huggingface-token",
                format!("hf_{}", f(34)),
                "hf_transfer and hf_hub_download".into(),
            ),
            ("jwt", format!("eyJ{}.eyJ{}.{}", f(20), f(40), f(43)), format!("eyJ{}", f(40))),
        ]
    }

    fn more_samples() -> Vec<(&'static str, String, String)> {
        let f = filler;
        let pem = |kind: &str| format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----", f(200));
        vec![
            ("linear-api-key", format!("lin_api_{}", f(40)), "lin_api_key".into()),
            ("new-relic-user-key", format!("NRAK-{}", upper(27)), "NRAK-KEY".into()),
            ("notion-api-token", format!("ntn_12345678901{}", f(35)), format!("ntn_{}", f(20))),
            ("npm-access-token", format!("npm_{}", f(36)), "npm_config_registry".into()),
            (
                "openai-api-key",
                format!("sk-proj-{}T3BlbkFJ{}", f(74), f(74)),
                format!("sk-{}", f(20)),
            ),
            ("postman-api-key", format!("PMAK-{}-{}", hex(24), hex(34)), "PMAK-KEY".into()),
            ("private-key", pem("OPENSSH PRIVATE KEY"), pem("CERTIFICATE")),
            (
                "pypi-upload-token",
                format!("pypi-AgEIcHlwaS5vcmc{}", f(80)),
                "pypi-AgEIcHlwaS5vcmc".into(),
            ),
            ("rubygems-api-key", format!("rubygems_{}", hex(48)), "rubygems_version".into()),
            ("sendgrid-api-key", format!("SG.{}.{}", f(22), f(43)), "SG.key.here".into()),
            ("sentry-org-token", format!("sntrys_eyJ{}", f(120)), "sntrys_eyJ".into()),
            ("shopify-token", format!("shpat_{}", hex(32)), "shpat_token".into()),
            ("sk-api-key", format!("sk-{}", f(48)), "sk-your-key-goes-here".into()),
            ("slack-token", format!("xoxb-123456789012-{}", f(24)), "xoxb-your-token".into()),
            (
                "slack-webhook-url",
                format!("https://hooks.slack.com/services/T{}/B{}/{}", upper(8), upper(8), f(24)),
                "https://hooks.slack.com/services/T/B/x".into(),
            ),
            ("stripe-secret-key", format!("sk_live_{}", f(24)), "sk_live_key".into()),
            ("telegram-bot-token", format!("123456789:AA{}", f(33)), "12:30:AA".into()),
            ("twilio-api-key", format!("SK{}", hex(32)), format!("SK{}", f(32))),
            (
                "url-password",
                "postgres://app:Tr0ub4dor@db.local/x".into(),
                "postgres://user:${PASSWORD}@db/x".into(),
            ),
            ("vault-service-token", format!("hvs.{}", f(95)), "hvs.token".into()),
            (
                "assigned-secret",
                format!("aws_secret_access_key = {}", f(40)),
                "password = config.password2, token: next_token2(), secret: /run/secrets/key1, api_key=${KEY_2}".into(),
            ),
            (
                "bearer-token",
                format!("Authorization: Bearer {}", f(40)),
                "Bearer your-token-goes-here".into(),
            ),
        ]
    }

    #[test]
    fn every_rule_finds_its_secret_in_a_sentence_and_leaves_what_is_alike() {
        let samples = samples();
        let names: Vec<&str> = samples.iter().map(|(rule, ..)| *rule).collect();
        let rules: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
        assert_eq!(names, rules, "one sample for each rule, in their order");
        for (rule, secret, alike) in samples {
            let found = scan(&format!("use \"{secret}\", please"));
            assert_eq!(found.iter().map(|hit| hit.rule).collect::<Vec<_>>(), [rule], "{secret}");
            let (clean, _) = redact(&format!("key={secret}\n")).unwrap();
            assert!(clean.contains(&format!("[REDACTED:{rule}]")), "{clean}");
            assert!(clean.len() < 90, "nothing of the secret is left: {clean}");
            assert_eq!(scan(&format!("use \"{alike}\", please")), [], "{alike}");
        }
    }

    #[test]
    fn every_rule_says_where_it_comes_from() {
        assert!(RULES.iter().all(|rule| rule.source.starts_with("https://github.com/")));
        assert!(RULES.iter().all(|rule| {
            rule.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        }));
    }
}
