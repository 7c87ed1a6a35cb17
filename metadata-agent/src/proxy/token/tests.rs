//! Decisions about requests: methods, headers in every spelling, bounds, and each mode.
use ::fuzz::fuzz;

use super::*;
use crate::{
    config::Tokens,
    directory::{TokenKey, TokenPolicy},
};

const NOW: Duration = Duration::from_secs(1_000_000);

fn policy(required: bool) -> RequestPolicy {
    let tokens = TokenPolicy {
        keys: TokenKeys { current: TokenKey([1; 32]), previous: Some(TokenKey([2; 32])) },
        required,
        required_for: Tokens::default().required_for,
        required_from: NOW,
        hop_limit: None,
    };
    RequestPolicy { tokens: Some(tokens), ..RequestPolicy::default() }
}

fn decide_at(now: Duration, policy: &RequestPolicy, line: &str, fields: &[&str]) -> Decision {
    let head = format!("{line} HTTP/1.1\r\n{}\r\n\r\n", fields.join("\r\n"));
    let head = if fields.is_empty() { format!("{line} HTTP/1.1\r\n\r\n") } else { head };
    decide(&Request::parse(head.as_bytes(), &["169.254.169.254"]).unwrap(), policy, now)
}

fn decide_now(policy: &RequestPolicy, line: &str, fields: &[&str]) -> Decision {
    decide_at(NOW, policy, line, fields)
}

fn token(end: Duration) -> String {
    seal(&policy(true).tokens.unwrap().keys, end).unwrap()
}

fn refused(refusal: Refusal) -> Decision {
    Decision::Refuse(refusal)
}

fn passed(outcome: Outcome) -> Decision {
    Decision::Pass(Some(outcome))
}

#[test]
fn a_token_is_given_for_a_proper_put() {
    let policy = policy(true);
    let ask = |line: &str, fields: &[&str]| decide_now(&policy, line, fields);
    for target in ["/latest/api/token", "/latest/api/token?x=y", "http://169.254.169.254/latest/api/token"] {
        let put = format!("PUT {target}");
        for (value, seconds) in [("1", 1), ("60", 60), ("21600", 21_600), ("  300 ", 300), ("00060", 60)] {
            let field = format!("X-aws-ec2-metadata-token-ttl-seconds:{value}");
            assert_eq!(ask(&put, &[&field]), Decision::Issue(TimeToLive(seconds)), "{target} {value}");
        }
    }
    let put = "PUT /latest/api/token";
    // Names have no case.
    for name in ["x-aws-ec2-metadata-token-ttl-seconds", "X-AWS-EC2-METADATA-TOKEN-TTL-SECONDS"] {
        assert_eq!(ask(put, &[&format!("{name}: 60")]), Decision::Issue(TimeToLive(60)));
    }
    for value in [
        "",
        "0",
        "21601",
        "-1",
        "+60",
        "60s",
        "1e3",
        "0x10",
        "6 0",
        "60,60",
        "99999999999999999999",
        "\u{661}",
        "000060",
    ] {
        let field = format!("X-aws-ec2-metadata-token-ttl-seconds: {value}");
        assert_eq!(ask(put, &[&field]), refused(Refusal::BadTimeToLive), "{value}");
    }
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
    assert_eq!(ask(put, &[]), refused(Refusal::BadTimeToLive));
    assert_eq!(ask(put, &[ttl, ttl]), refused(Refusal::BadTimeToLive));
    // Not Firecracker's name.
    assert_eq!(ask(put, &["X-metadata-token-ttl-seconds: 60"]), refused(Refusal::BadTimeToLive));
    for field in
        ["X-Forwarded-For: 192.0.2.1", "x-forwarded-for:", "Forwarded: for=192.0.2.1", "Via: 1.1 proxy"]
    {
        assert_eq!(ask(put, &[ttl, field]), refused(Refusal::Forwarded), "{field}");
        // Whatever else is wrong with it.
        assert_eq!(ask(put, &[field]), refused(Refusal::Forwarded), "{field}");
    }
    for method in ["GET", "HEAD", "POST", "DELETE", "PATCH", "OPTIONS", "put", "Put"] {
        let line = format!("{method} /latest/api/token");
        assert_eq!(ask(&line, &[ttl]), refused(Refusal::Method), "{method}");
    }
    // Other spellings give no token, and are Nova's to answer.
    for target in [
        "/latest/api/token/",
        "//latest/api/token",
        "/latest/api/%74oken",
        "/latest/api/tokens",
        "/Latest/api/token",
        "/latest/api",
    ] {
        let decision = ask(&format!("PUT {target}"), &[ttl]);
        assert_eq!(decision, passed(Outcome::Without), "{target}");
    }
}

#[test]
fn what_is_sent_is_checked_in_each_mode_and_on_each_path() {
    let good = format!("X-aws-ec2-metadata-token: {}", token(NOW + Duration::from_secs(1)));
    let late = format!("X-aws-ec2-metadata-token: {}", token(NOW));
    let keys = TokenKeys { current: TokenKey([3; 32]), previous: None };
    let others = format!("x-aws-ec2-metadata-token: {}", seal(&keys, NOW + Duration::from_secs(1)).unwrap());
    for policy in [policy(false), policy(true)] {
        for line in [
            "GET /latest/user-data",
            "GET /",
            "HEAD /openstack/latest/meta_data.json",
            "POST /openstack/latest/password",
        ] {
            let ask = |fields: &[&str]| decide_now(&policy, line, fields);
            assert_eq!(ask(&[&good]), passed(Outcome::Accepted), "{line}");
            assert_eq!(
                ask(&[&good.to_ascii_uppercase().replace(&good.to_ascii_uppercase()[26..], &good[26..])]),
                passed(Outcome::Accepted)
            );
            assert_eq!(ask(&[&late]), refused(Refusal::Expired), "{line}");
            assert_eq!(ask(&[&others]), refused(Refusal::Invalid), "{line}");
            assert_eq!(ask(&[&good, &good]), refused(Refusal::Invalid), "{line}");
            assert_eq!(ask(&["X-aws-ec2-metadata-token:"]), refused(Refusal::Invalid), "{line}");
        }
    }
}

#[test]
fn without_a_token_the_mode_decides_and_the_time() {
    for line in [
        "GET /latest/user-data",
        "HEAD /latest/%75ser-data",
        "POST /openstack/latest/password",
        "GET /openstack/latest/user_data?x",
    ] {
        assert_eq!(decide_now(&policy(true), line, &[]), refused(Refusal::Missing), "{line}");
        assert_eq!(decide_now(&policy(false), line, &[]), passed(Outcome::WithoutWhereOptional), "{line}");
        let before = NOW - Duration::from_millis(1);
        assert_eq!(decide_at(before, &policy(true), line, &[]), passed(Outcome::WithoutYet), "{line}");
        // A clock that cannot be read.
        assert_eq!(decide_at(Duration::MAX, &policy(true), line, &[]), refused(Refusal::Missing), "{line}");
        // A token that is no good is none in any time.
        let bad = ["X-aws-ec2-metadata-token: x"];
        assert_eq!(decide_at(before, &policy(true), line, &bad), refused(Refusal::Invalid), "{line}");
        assert_eq!(decide_now(&RequestPolicy::default(), line, &bad), Decision::Pass(None), "{line}");
    }
    for line in ["GET /latest/meta-data/instance-id", "GET /openstack/latest/meta_data.json", "GET /"] {
        assert_eq!(decide_now(&policy(true), line, &[]), passed(Outcome::Without), "{line}");
    }
}

#[test]
fn what_a_proxy_passed_on_is_refused_where_that_is_wanted() {
    let strict = |tokens| RequestPolicy { refuse_forwarded: true, tokens, ..RequestPolicy::default() };
    for policy in [strict(None), strict(policy(false).tokens)] {
        for field in ["X-Forwarded-For: 192.0.2.1", "FORWARDED: for=_x", "via: 1.0 x"] {
            assert_eq!(decide_now(&policy, "GET /latest/", &[field]), refused(Refusal::Forwarded), "{field}");
        }
    }
    assert_eq!(decide_now(&strict(None), "GET /latest/", &["X-Forwarded-Proto: http"]), Decision::Pass(None));
    // Elsewhere that is a header like others, except where a token is asked for.
    let lenient = policy(false);
    assert_eq!(decide_now(&lenient, "GET /latest/", &["Via: 1.0 x"]), passed(Outcome::Without));
    // Without tokens Nova answers for its path.
    assert_eq!(decide_now(&strict(None), "PUT /latest/api/token", &[]), Decision::Pass(None));
}

#[test]
fn the_answer_says_how_long() {
    let mut out = Vec::new();
    write("abc", TimeToLive(60), Version::Http11, true, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 OK\r\nServer: metadata-agent\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\
         X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\n\r\nabc"
    );
}

/// Any head: where tokens are required, a request that names a secret passes with a good token only.
#[test]
fn heads() {
    let good = token(NOW + Duration::from_secs(60));
    let seeds = [
        format!("GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {good}\r\n\r\n"),
        "GET /openstack/latest/password HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nVia: x\r\n\r\n"
            .to_owned(),
        "GET /latest/meta-data/../%75ser-data?x HTTP/1.1\r\nForwarded: x\r\n\r\n".to_owned(),
    ];
    let words =
        ["%2f", "%25", "..", "/", ";", "?", "\u{a0}", "user-data", "X-aws-ec2-metadata-token: ", "\r\n", "%"];
    let policy = policy(true);
    let mut counts = [0_u32; 3];
    fuzz("proxy::token::heads", |random| {
        let mut head = random.pick(&seeds.each_ref()).clone().into_bytes();
        random.damage(&mut head, &words);
        let Ok(request) = Request::parse(&head, &[]) else { return };
        let sent: Vec<_> = request.fields.values(TOKEN).collect();
        match decide(&request, &policy, NOW) {
            Decision::Pass(Some(Outcome::Accepted)) => {
                assert_eq!(sent, [good.as_bytes()], "{}", head.escape_ascii());
                counts[0] += 1;
            }
            Decision::Pass(outcome) => {
                assert!(sent.is_empty() && outcome == Some(Outcome::Without), "{}", head.escape_ascii());
                let target = request.target.split(|byte| *byte == b'?').next().unwrap();
                let last =
                    target.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()).unwrap_or_default();
                assert!(!matches!(last, b"user-data" | b"password"), "{}", head.escape_ascii());
                counts[1] += 1;
            }
            Decision::Issue(TimeToLive(seconds)) => {
                assert!(request.method == b"PUT" && (1..=MOST_SECONDS).contains(&seconds));
                assert!(!is_forwarded(&request), "{}", head.escape_ascii());
                counts[2] += 1;
            }
            Decision::Refuse(_) => {}
        }
    });
    println!("fuzz::proxy::token::heads: {counts:?} were accepted, passed without, given a token");
    assert!(counts.iter().all(|count| *count > 0) || std::env::var("FUZZ_SECONDS").is_ok(), "{counts:?}");
}
