//! Signed tokens (JWT): HMAC, RSA and ECDSA, with one key or those of a JWKS file. Judged on the threads of [`super::pool`].
//! Always true: the kind of key decides which algorithms are possible, never the token; what is said in a token counts only
//! when its signature, its times and the claims that the operator asks for are right.

use std::sync::Arc;

use broker::access::{Principal, Rule, Rules};
use contract::config::{TokenFrom, TokenKnobs};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, Jwk, JwkSet},
};
use mqtt::types::Reason;
use serde_json::{Map, Value};

use super::{policy::Word, pool::Question};

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 64 << 10;
/// Keys of a JWKS file.
const KEYS_MAX: usize = 256;
/// Rules that a token may bring.
const OWN_RULES_MAX: usize = 1024;

const HMAC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
const ECDSA: [Algorithm; 2] = [Algorithm::ES256, Algorithm::ES384];

/// A judge of tokens.
pub(super) struct Tokens {
    from: TokenFrom,
    keys: Vec<Key>,
    username_claim: String,
    acl_claim: String,
    /// Claim and value.
    verify: Vec<(String, String)>,
    seed: u64,
}

struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.keys.len())
    }
}

impl Tokens {
    /// Reads the keys that the configuration names. An error begins with the key of the configuration.
    pub(super) fn new(
        knobs: &TokenKnobs,
        seed: u64,
        read: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Tokens, String> {
        let keys = match (&knobs.secret, &knobs.public_key, &knobs.jwks) {
            (Some(secret), ..) => {
                let key = DecodingKey::from_secret(secret.reveal().as_bytes());
                vec![Key { id: None, algorithms: &HMAC, key }]
            }
            (_, Some(path), _) => {
                let keys = read(path).and_then(|pem| public_key(pem.as_bytes()));
                vec![keys.map_err(|why| format!("public_key: {path}: {why}"))?]
            }
            (_, _, Some(path)) => {
                let keys = read(path).and_then(|text| jwks(&text));
                keys.map_err(|why| format!("jwks: {path}: {why}"))?
            }
            _ => return Err("mechanism: a token needs a key".to_owned()),
        };
        let verify = knobs.verify_claims.iter().filter_map(|claim| claim.split_once('='));
        Ok(Tokens {
            from: knobs.from,
            keys,
            username_claim: knobs.username_claim.clone(),
            acl_claim: knobs.acl_claim.clone(),
            verify: verify.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            seed,
        })
    }

    /// What the token of a client says. What is no token is passed on.
    pub(super) fn judge(&self, question: &Question) -> Word {
        let text = match self.from {
            TokenFrom::Password => question.password.as_deref().and_then(|password| str::from_utf8(password).ok()),
            TokenFrom::Username => question.username.as_deref(),
        };
        let Some(token) = text.filter(|text| text.len() <= TOKEN_BYTES_MAX && text.split('.').count() == 3) else {
            return Word::Ignore;
        };
        let Ok(header) = decode_header(token) else { return Word::Ignore };
        let Some(claims) = self.claims(token, header.alg, header.kid.as_deref()) else {
            return Word::Deny(Reason::BadUserNameOrPassword);
        };
        match self.principal(&claims, question) {
            Some(principal) => Word::Allow(principal),
            None => Word::Deny(Reason::NotAuthorized),
        }
    }

    /// The claims, if a key of ours has signed them and they hold now.
    fn claims(&self, token: &str, algorithm: Algorithm, id: Option<&str>) -> Option<Map<String, Value>> {
        let named = |key: &&Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        let fitting = self.keys.iter().filter(named).filter(|key| key.algorithms.contains(&algorithm));
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.leeway = 0;
        fitting
            .filter_map(|key| decode::<Map<String, Value>>(token, &key.key, &validation).ok())
            .map(|decoded| decoded.claims)
            .next()
    }

    /// Whom the claims describe; `None`: they are not what the operator asks for, or cannot be understood.
    fn principal(&self, claims: &Map<String, Value>, question: &Question) -> Option<Principal> {
        let told = match self.from {
            TokenFrom::Password => question.username.as_deref(),
            TokenFrom::Username => None,
        };
        for (name, wanted) in &self.verify {
            let wanted =
                wanted.replace("${clientid}", &question.client).replace("${username}", told.unwrap_or_default());
            let found = match claims.get(name)? {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if found != wanted {
                return None;
            }
        }
        let user = match claims.get(&self.username_claim) {
            None => None,
            Some(Value::String(user)) => Some(user.as_str()),
            Some(_) => return None,
        };
        if told.is_some() && user.is_some() && told != user {
            return None;
        }
        let own = match claims.get(&self.acl_claim) {
            None => None,
            Some(acl) => Some(Arc::new(Rules::new(own_rules(acl)?, false, self.seed))),
        };
        let expires_ms = match claims.get("exp") {
            None => u64::MAX,
            Some(exp) => exp.as_f64().map(|seconds| (seconds * 1000.0) as u64)?,
        };
        if claims.get("nbf").is_some_and(|begins| !begins.is_number()) {
            return None;
        }
        let superuser = claims.get("is_superuser").is_some_and(|superuser| *superuser == Value::Bool(true));
        Some(Principal { superuser, own, expires_ms, proven: true, ..Principal::unproven(user) })
    }
}

/// A list of rules, or EMQX's older form: what may be published, subscribed and both, and nothing else.
pub(super) fn own_rules(acl: &Value) -> Option<Vec<Rule>> {
    let mut rules = Vec::new();
    match acl {
        Value::Array(list) => {
            for entry in list {
                rules.extend(own_rule(entry.as_object()?)?);
            }
        }
        Value::Object(lists) => {
            for (action, topics) in lists {
                let (publish, subscribe) = match action.as_str() {
                    "pub" => (true, false),
                    "sub" => (false, true),
                    "all" => (true, true),
                    _ => return None,
                };
                for topic in topics.as_array()? {
                    rules.push(Rule::claim(true, publish, subscribe, topic.as_str()?).ok()?);
                }
            }
            rules.push(Rule::deny_rest());
        }
        _ => return None,
    }
    (rules.len() <= OWN_RULES_MAX).then_some(rules)
}

/// `{"permission": "allow", "action": "publish", "topic": "a/#"}`, or `topics` for several.
fn own_rule(entry: &Map<String, Value>) -> Option<Vec<Rule>> {
    // A condition that is not understood would make a rule wider than it is meant.
    if !entry.keys().all(|key| matches!(key.as_str(), "permission" | "action" | "topic" | "topics")) {
        return None;
    }
    let allow = match entry.get("permission")?.as_str()? {
        "allow" => true,
        "deny" => false,
        _ => return None,
    };
    let (publish, subscribe) = match entry.get("action").map_or(Some("all"), Value::as_str)? {
        "publish" | "pub" => (true, false),
        "subscribe" | "sub" => (false, true),
        "all" | "pubsub" => (true, true),
        _ => return None,
    };
    let topics = match (entry.get("topic"), entry.get("topics")) {
        (Some(topic), None) => std::slice::from_ref(topic),
        (None, Some(topics)) => topics.as_array()?,
        _ => return None,
    };
    topics.iter().map(|topic| Rule::claim(allow, publish, subscribe, topic.as_str()?).ok()).collect()
}

fn public_key(pem: &[u8]) -> Result<Key, String> {
    if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
        return Ok(Key { id: None, algorithms: &RSA, key });
    }
    match DecodingKey::from_ec_pem(pem) {
        Ok(key) => Ok(Key { id: None, algorithms: &ECDSA, key }),
        Err(_) => Err("there is no public key of RSA or ECDSA in it".to_owned()),
    }
}

fn jwks(text: &str) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("it has {} keys; at most {KEYS_MAX} are possible", set.keys.len()));
    }
    let key = |jwk: &Jwk| {
        let algorithms: &'static [Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &RSA,
            AlgorithmParameters::EllipticCurve(_) => &ECDSA,
            AlgorithmParameters::OctetKey(_) => &HMAC,
            AlgorithmParameters::OctetKeyPair(_) => return None,
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Some(Key { id: jwk.common.key_id.clone(), algorithms, key })
    };
    let keys: Vec<Key> = set.keys.iter().filter_map(key).collect();
    if keys.is_empty() { Err("it has no key that could be used".to_owned()) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use contract::config::Secret;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use mqtt::types::Qos;
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
    };
    use serde_json::json;

    use super::*;

    const SECRET: &str = "sixteen bytes or more";

    fn tokens(adjust: impl FnOnce(&mut TokenKnobs)) -> Tokens {
        let mut knobs = TokenKnobs { secret: Some(Secret::new(SECRET)), ..TokenKnobs::default() };
        adjust(&mut knobs);
        Tokens::new(&knobs, 1, |text| Ok(text.to_owned())).expect("keys")
    }

    fn signed(claims: &Value) -> String {
        encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("a token")
    }

    fn ask(tokens: &Tokens, username: Option<&str>, token: &str) -> Result<Principal, Option<Reason>> {
        match tokens.judge(&Question::about("client", username, Some(token))) {
            Word::Allow(principal) => Ok(principal),
            Word::Deny(reason) => Err(Some(reason)),
            Word::Ignore => Err(None),
        }
    }

    fn now_s() -> u64 {
        std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
    }

    #[test]
    fn a_token_of_ours_proves_who_it_names_until_it_ends() {
        let tokens = tokens(|_| {});
        let exp = now_s() + 60;
        let alice = ask(&tokens, None, &signed(&json!({"sub": "alice", "exp": exp}))).expect("it is ours");
        assert_eq!((alice.user.as_deref(), alice.expires_ms, alice.superuser), (Some("alice"), exp * 1000, false));
        assert!(alice.proven && alice.own.is_none());
        let root =
            ask(&tokens, Some("root"), &signed(&json!({"sub": "root", "is_superuser": true}))).expect("it is ours");
        assert!(root.superuser && root.expires_ms == u64::MAX);
        let nobody = ask(&tokens, Some("root"), &signed(&json!({}))).expect("it is ours");
        assert_eq!(nobody.user, None, "a name that no token proves is no name");
    }

    #[test]
    fn what_is_not_right_is_denied_and_what_is_no_token_passed_on() {
        let tokens = tokens(|knobs| knobs.verify_claims = vec!["iss=us".to_owned(), "dev=${clientid}".to_owned()]);
        let good = json!({"sub": "a", "iss": "us", "dev": "client"});
        assert!(ask(&tokens, Some("a"), &signed(&good)).is_ok());
        for (name, value, reason) in [
            ("exp", json!(now_s() - 1), Reason::BadUserNameOrPassword),
            ("nbf", json!(now_s() + 60), Reason::BadUserNameOrPassword),
            ("exp", json!("soon"), Reason::NotAuthorized),
            ("nbf", json!("soon"), Reason::NotAuthorized),
            ("iss", json!("them"), Reason::NotAuthorized),
            ("dev", json!("other"), Reason::NotAuthorized),
            ("sub", json!("b"), Reason::NotAuthorized),
            ("sub", json!(7), Reason::NotAuthorized),
            ("acl", json!("all"), Reason::NotAuthorized),
            ("acl", json!([{"permission": "allow", "topic": "a", "qos": [0]}]), Reason::NotAuthorized),
        ] {
            let mut claims = good.clone();
            claims[name] = value;
            assert_eq!(ask(&tokens, Some("a"), &signed(&claims)).err(), Some(Some(reason)), "{claims}");
        }
        let token = signed(&good);
        let (body, signature) = token.rsplit_once('.').expect("three parts");
        let forged = format!("{body}.{}", URL_SAFE_NO_PAD.encode([0; 32]));
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), body.split_once('.').unwrap().1);
        assert_eq!(ask(&tokens, None, &forged).err(), Some(Some(Reason::BadUserNameOrPassword)));
        for no_token in ["password", "a.b.c", signature, "", unsigned.as_str()] {
            assert_eq!(ask(&tokens, None, no_token).err(), Some(None), "{no_token}");
        }
    }

    #[test]
    fn a_key_set_finds_the_signer_and_no_other_kind_of_key_will_do() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).expect("a key");
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let set = json!({"keys": [
            {"kty": "oct", "kid": "shared", "k": URL_SAFE_NO_PAD.encode("another secret, also long")},
            {"kty": "EC", "crv": "P-256", "kid": "signer", "x": x, "y": y},
        ]});
        let tokens = tokens(|knobs| (knobs.secret, knobs.jwks) = (None, Some(set.to_string())));
        let key = EncodingKey::from_ec_der(pkcs8.as_ref());
        let header = |kid: Option<&str>| Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) };
        let claims = json!({"sub": "alice"});
        for (kid, well) in [(Some("signer"), true), (None, true), (Some("shared"), false), (Some("x"), false)] {
            let token = encode(&header(kid), &claims, &key).expect("a token");
            assert_eq!(ask(&tokens, None, &token).is_ok(), well, "{kid:?}");
        }
        // The public key as the secret of an HMAC: the oldest trick.
        let trick = encode(&Header::default(), &claims, &EncodingKey::from_secret(point)).expect("a token");
        assert!(ask(&tokens, None, &trick).is_err());
    }

    #[test]
    fn a_token_brings_rules_in_both_of_emqx_forms() {
        let tokens = tokens(|_| {});
        let may = |acl: Value, topic: &str| {
            let principal = ask(&tokens, None, &signed(&json!({"sub": "u", "acl": acl}))).expect("it is ours");
            let node = Arc::new(Rules::new(Vec::new(), true, 1));
            let subject = broker::access::Subject { client: "c", user: Some("u"), peer: [127, 0, 0, 1].into() };
            let rights = broker::access::Rights::new(principal.own.as_ref(), &node, &subject);
            (rights.may_publish(topic, Qos::AtMostOnce, false), rights.may_receive(topic, Qos::AtMostOnce))
        };
        let list = json!([
            {"permission": "allow", "action": "publish", "topic": "t/${clientid}"},
            {"permission": "deny", "topics": ["t/#", "eq x"]},
        ]);
        assert_eq!(may(list.clone(), "t/c"), (true, false));
        assert_eq!((may(list.clone(), "t/d"), may(list.clone(), "x")), ((false, false), (false, false)));
        assert_eq!(may(list, "elsewhere"), (true, true), "the rules of the node decide");
        let lists = json!({"pub": ["p/#"], "sub": ["s"], "all": ["b/${username}"]});
        assert_eq!((may(lists.clone(), "p/1"), may(lists.clone(), "s")), ((true, false), (false, true)));
        assert_eq!((may(lists.clone(), "b/u"), may(lists, "elsewhere")), ((true, true), (false, false)));
    }
}
