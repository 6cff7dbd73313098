"""How much of a text is in a language: the share of its letters in the language's script, times the share of its words.

Letters are those of `builder.scripts`, outside formulas and code, as in the features. Words are asked only where
several languages known here share a script: the commonest ones of each. A text without any of them says nothing.
"""

import re
from functools import cache
from typing import Final

import numpy as np

from builder.scripts import ARABIC, CYRILLIC, HAN, HANGUL, KANA, LATIN, OTHER, kinds
from builder.text import quiet_spans

_SCRIPTS: Final = {
    **dict.fromkeys(
        ("cs", "da", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "no", "pl", "pt", "ro"), "latin"
    ),
    **dict.fromkeys(("sv", "sw", "tl", "tr", "vi"), "latin"),
    **dict.fromkeys(("bg", "ru", "uk"), "cyrillic"),
    **dict.fromkeys(("ar", "fa", "ur"), "arabic"),
    **dict.fromkeys(("hi", "mr", "ne"), "devanagari"),
    **{"zh": "chinese", "ja": "japanese", "ko": "korean", "he": "hebrew", "hy": "armenian", "ka": "georgian"},
    **{"bn": "bengali", "pa": "gurmukhi", "gu": "gujarati", "ta": "tamil", "te": "telugu", "kn": "kannada"},
    **{"ml": "malayalam", "th": "thai", "el": "greek"},
}
LANGUAGES: Final = tuple(sorted(_SCRIPTS))
"""Codes (ISO 639-1) that `language_share` knows."""

_KINDS: Final = {"latin": (LATIN,), "cyrillic": (CYRILLIC,), "arabic": (ARABIC,), "chinese": (HAN,)} | {
    "japanese": (HAN, KANA),
    "korean": (HAN, HANGUL),
}
_BLOCKS: Final = {
    "greek": (0x0370, 0x03FF),
    "armenian": (0x0530, 0x058F),
    "hebrew": (0x0590, 0x05FF),
    "devanagari": (0x0900, 0x097F),
    "bengali": (0x0980, 0x09FF),
    "gurmukhi": (0x0A00, 0x0A7F),
    "gujarati": (0x0A80, 0x0AFF),
    "tamil": (0x0B80, 0x0BFF),
    "telugu": (0x0C00, 0x0C7F),
    "kannada": (0x0C80, 0x0CFF),
    "malayalam": (0x0D00, 0x0D7F),
    "thai": (0x0E00, 0x0E7F),
    "georgian": (0x10A0, 0x10FF),
}
_WORDS: Final = {
    "bg": "и на за да се от в с е са си не това като по към ще може също или които който което има ви ще",
    "cs": "a je v na se že do to s z pro jako za by ale jsou od po který která které ve jeho při nebo tak být",
    "da": "og i at det er en til af på som med for ikke den der et har de jeg du kan var vil fra blev hvad også eller",
    "de": "der die das und ist in den von zu mit sich des auf für nicht ein eine im dem es als auch an ich sie er wird "
    "werden sind aus bei oder wie kann wir wenn nach durch über haben hat",
    "en": "the of and to a in is that it for on with as are was be this you by i at from or have an not they which we "
    "can will your if has but their its do no me he she so per was were men die man had them there these than then "
    "when where what how each who all more over only come let am does our see last sum note",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ya este sí "
    "porque esta entre cuando muy sobre también me hasta son puede",
    "fi": "ja on ei se että hän oli ovat joka mutta kun myös niin kuin sen tämä hänen jos voi tai olla mitä sekä minä "
    "sinä he ne me te mukaan jotka kanssa",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec ou son "
    "elle nous vous cette mais aux comme je",
    "hu": "a az és hogy nem is egy van ez meg de csak mint már el volt ha vagy még azt ami ezt lehet nagyon",
    "id": "yang dan di untuk dengan ini itu dari dalam tidak adalah pada ke akan juga atau oleh sebagai dapat kita "
    "saya anda mereka bisa ada lebih telah karena",
    "it": "di e il la che in un per è una non del si con i da le dei della gli al nel sono ma come più anche o lo alla "
    "questo questa delle ha mi",
    "nl": "de het een van en in is dat op te voor met zijn niet aan er om ook als dan maar bij of uit nog naar door "
    "heeft hij ik je deze dit wordt",
    "no": "og i det er en til av på som med for ikke den de et har jeg du kan var vil fra ble hva også eller å",
    "pl": "i w nie na się z że do to jest o jak ale po za dla od co tak być przez są oraz lub który która które ma",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
    "sua ou ser quando muito há nos já está eu também só pelo pela você são",
    "ro": "și de la în a cu pe nu o să care este un din mai sau pentru ca se ce o sunt fi au dar prin",
    "ru": "и в не на я что с а то как по но из за от так к о же для это или у его бы вы мы если было они все может "
    "также который которые быть есть",
    "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag från vi du kan ska eller "
    "också där",
    "sw": "na ya wa kwa ni katika za la kuwa hii kama yake hiyo cha si lakini hata au pia wao watu huo hivyo ili huu "
    "kwamba vya kila sana mimi wewe sisi yetu",
    "tl": "ang ng sa na mga ay at si ako ko mo hindi ito niya kung para siya ka namin natin kanyang isang",
    "tr": "ve bir bu da de için ile çok olarak daha ne gibi var ama o en kadar olan sonra her mı mi değil ben sen biz",
    "uk": "і в не на я що з та як по але із за від так до про же для це або у його б ви ми якщо було вони є також який "
    "які бути",
    "vi": "và của là có các trong cho được một không với những này người để đã khi thì tôi bạn đó về như từ ra con",
    "ar": "في من على أن إلى التي الذي هذا هذه مع عن لا ما هو هي كان كما أو بين كل قد لم ذلك بعد ثم إن",
    "fa": "و در به از که این است را با برای آن یک های می شود کند شما ما من هم تا یا بود خود اگر باید بر",
    "ur": "کے کی میں کا ہے اور سے کو پر نے ہیں یہ کہ ایک جو بھی نہیں اس کر ہو تھا آپ ہم لیے تو",
    "hi": "के है में की और का को से हैं पर यह कि एक ने नहीं भी लिए हो इस कर आप था जो तो या अपने हम मैं",
    "mr": "आणि आहे या च्या मध्ये ते हे की एक तो ती नाही आहेत असे करण्यासाठी होते साठी मी तुम्ही आपण करा आपल्या व त्या हा ही "
    "आम्ही तुमच्या आपले",
    "ne": "र को मा छ हो यो लागि पनि गर्न छन् भने एक हुन्छ तपाईं तपाईंको हामी म गर्नुहोस् का थियो वा यस लाई हाम्रो सक्छ",
}
_MARKS: Final = re.compile(r"^\W+|\W+$")


def language_share(text: str, language: str) -> float | None:
    """Share of a text, 0 to 1, that is in a language (`de`, `pt-BR`); None without letters or without known words.

    Linear in the text. Raises KeyError for a language that is not in LANGUAGES.
    """
    language = language.lower().replace("_", "-").partition("-")[0]
    script = _SCRIPTS[language]
    prose = _prose(text)
    letters, own = _letters(prose, script)
    if not letters:
        return None
    rivals = [code for code, written in _SCRIPTS.items() if written == script]
    if len(rivals) == 1 or not own:
        return own / letters
    known = frozenset.union(*map(_common, rivals))
    found = [word for word in _words(prose) if word in known]
    if not found:
        return None
    return own / letters * sum(word in _common(language) for word in found) / len(found)


def _words(prose: str) -> list[str]:
    """Words in lower case; none with a backslash, and no Latin letter alone: these are mathematics in any language."""
    words = (_MARKS.sub("", word) for word in prose.lower().split() if "\\" not in word)
    return [word for word in words if len(word) > 1 or word > "\u024f"]


@cache
def _common(language: str) -> frozenset[str]:
    return frozenset(_WORDS[language].split())


def _prose(text: str) -> str:
    """The text without formulas and fenced code."""
    parts, at = [], 0
    for start, end, _ in quiet_spans(text):
        parts.append(text[at:start])
        at = end
    return " ".join([*parts, text[at:]])


def _letters(text: str, script: str) -> tuple[int, int]:
    """Letters of all scripts, and of one."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    found = kinds()[codes]
    is_letter = (found >= LATIN) & (found <= OTHER)
    if block := _BLOCKS.get(script):
        own = (codes >= block[0]) & (codes <= block[1])
        if script == "greek":  # formulas are full of Greek: elsewhere it counts as no letter
            is_letter |= own
        return int(is_letter.sum()), int((own & is_letter).sum())
    own = np.isin(found, _KINDS[script])
    if script in ("japanese", "korean") and not np.isin(found, (KANA, HANGUL)).any():
        own[:] = False  # Han alone is Chinese
    return int(is_letter.sum()), int(own.sum())
