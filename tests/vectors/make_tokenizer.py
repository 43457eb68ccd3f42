"""Writes the tokenizer vectors: strings and the ids Hugging Face `tokenizers` gives them.

    python tests/vectors/make_tokenizer.py tests/data/qwen3-tokenizer \
        tests/data/tokenizer_vectors.json.gz

    {"strings": {group: [[text, ids, ids_added], ...]},
     "sweeps": {template: {first code point of a block: sha256 of ids}}}

Bytes that are not UTF-8 stand in text as lone surrogates (errors="surrogateescape").
ids take added tokens as plain text, ids_added as themselves; it is absent when equal.
A sweep covers code points BLOCK at a time: the template filled with each of them in turn,
TEXT to a text, the ids of the texts as little-endian int32.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import struct
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

BLOCK, TEXT = 4096, 256
SWEPT = [*range(0, 0xD000, BLOCK), *range(0xE000, 0x40000, BLOCK), 0xE0000, 0x10F000]
SWEEPS = ("a{0}b1{0}{0} {0}\n", "{0}\u0338{0}\u0323\u0301\u3099 ", "\u0345{0}\u0334'{0}e")

LANGUAGES = """
English: The weather turned cold overnight, so we stayed in and read by the fire.
English: I'm sure they'll say it's fine; we've heard that before, haven't we?
English: On 24 March 1998 the company sold 1,250 units at $19.99 each (about 12% more).
German: Die Straßenbahn fährt übermorgen wegen größerer Bauarbeiten nicht über die Brücke.
German: Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz heißt ein langes Wort.
French: L'été dernier, nous avons mangé des crêpes à côté de l'hôtel où naquit l'œuvre.
French: « Qu'est-ce que c'est ? » demanda-t-elle ; « rien », répondit-il aussitôt !
Spanish: ¿Cuándo llegará el próximo tren? ¡Ojalá que mañana, señor Núñez!
Spanish: El pingüino comió un sándwich en la cafetería de la estación.
Portuguese: A manhã trouxe nuvens e pão quente; não há razão para preocupações.
Italian: Perché non c'è più caffè? È finito già ieri, dell'altro arriverà lunedì.
Dutch: De coördinator vond het idee zo gek nog niet, 's morgens vroeg op het ijs.
Swedish: Åke köpte räksmörgåsar på ön i går, men de var inte så färska längre.
Norwegian: Blåbærsyltetøy på brødskive er det beste jeg vet om høsten.
Danish: Rødgrød med fløde smager dejligt på en varm sommerdag i Ærøskøbing.
Finnish: Hääyöaie oli lähellä, mutta järvi jäätyi jo ennen kuin pääsimme perille.
Icelandic: Það er kalt úti í dag og kýrnar liggja inni í fjósi með æðarfuglinum.
Polish: Zażółć gęślą jaźń, powiedział źrebak i pobiegł ścieżką przez łąkę.
Czech: Příliš žluťoučký kůň úpěl ďábelské ódy u řeky Vltavy.
Slovak: Päťtýždňové vĺčatá nervózne štekajú na môjho ďatľa v tŕní.
Hungarian: Árvíztűrő tükörfúrógép nélkül nehéz a szőlőhegyen őrködni.
Romanian: Înțelepciunea bătrânilor își găsește locul și în școlile de astăzi.
Croatian: Gojazni đačić s biciklom drži hmelj i finu vatu u džepu nošnje.
Turkish: Işıl ışıl İstanbul'da çığlık çığlığa uçuşan martıları özlüyorum.
Azerbaijani: Zəfər, jaketini də papağını da götür, bu axşam hava çox soyuq olacaq.
Lithuanian: Įlinkdama fechtuotojo špaga sublykčiojusi pragręžė apvalų arbūzą.
Latvian: Glāžšķūņa rūķīši dzērumā čiepj Baha koncertflīģeļu vākus.
Estonian: Põdur Zagrebi tšellomängija-följetonist ciao külmetas kehvas garaažis.
Welsh: Parciais fy jac codi baw hud llawn dŵr ger tŷ Mabon, ŵyr y tân.
Irish: D'fhuascail Íosa Úrmhac na hÓighe Beannaithe pór Éava agus Ádhaimh.
Vietnamese: Tiếng Việt có rất nhiều dấu, chẳng hạn như ở những từ “nghiêng” và “đường”.
Vietnamese: Hôm qua trời mưa to nên chúng tôi ở nhà đọc sách và uống trà nóng.
Indonesian: Kemarin anak-anak bermain layang-layang di lapangan dekat rumah nenek.
Tagalog: Magandang umaga po, kumusta na kayo at ang inyong mga anak?
Swahili: Habari ya asubuhi, watoto wanacheza mpira karibu na mto mkubwa.
Yoruba: Ọjọ́ dára láti lọ sí ọjà, ẹ kú iṣẹ́ o, ẹ̀yin ènìyàn rere.
Hausa: Ƙaramin yaro ya ɗauki ɓauna zuwa kasuwa da safiyar yau.
Esperanto: Eĥoŝanĝo ĉiuĵaŭde estas ŝerca frazo pri la ĝojo de leteroj.
Greek: Ξεσκεπάζω την ψυχοφθόρα βδελυγμία, είπε ο γέρος στην ταβέρνα.
Greek: Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν.
Russian: Съешь же ещё этих мягких французских булок, да выпей чаю.
Russian: В 1861 году вышел указ № 7 — его читали вслух на площадях.
Ukrainian: Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!
Bulgarian: Ах, чудна българска земьо, полюшвай цъфтящи жита.
Serbian: Фијуче ветар у шибљу, леди пасаже и куће иза њих.
Macedonian: Ѓаконот ќе дојде со џез-оркестар на свадбата во Охрид.
Kazakh: Қазақ тілінде әріптер көп: ә, ғ, қ, ң, ө, ұ, ү, һ, і.
Mongolian: Өнөөдөр тэнгэр цэлмэг, үүл ч үгүй сайхан өдөр байна.
Georgian: ვეპხის ტყაოსანი შოთა რუსთაველი, დილა მშვიდობისა მეგობრებო.
Armenian: Բարեւ ձեզ, ինչպե՞ս եք։ Այսօր Երեւանում արեւոտ եղանակ է։
Hebrew: שלום עולם! היום יום יפה מאוד, והילדים משחקים בגן.
Hebrew: בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ׃
Yiddish: איך קען עסן גלאָז און עס טוט מיר נישט װײ.
Arabic: مرحبًا بالعالم، كيف حالك اليوم؟ الطقس جميل جدًا.
Arabic: الْعَرَبِيَّةُ لُغَةٌ جَمِيلَةٌ، وَفِيهَا ٢٨ حَرْفًا.
Persian: می‌خواهم کتاب‌های تازه را در سال ۱۴۰۳ بخوانم.
Urdu: آج موسم بہت اچھا ہے اور بچے باغ میں کھیل رہے ہیں۔
Pashto: زه هره ورځ سهار وختي پاڅېږم او چای څښم.
Kurdish: Her roj ez zû radibim û çay vedixwim, paşê diçim ser kar.
Hindi: आज मौसम बहुत अच्छा है, इसलिए हम बगीचे में क़िताब पढ़ेंगे।
Hindi: भारत की जनसंख्या १४० करोड़ से अधिक है।
Marathi: मराठी भाषेत ळ हे अक्षर महत्त्वाचे आहे, तुम्ही कसे आहात?
Nepali: नेपालको सबैभन्दा अग्लो हिमाल सगरमाथा हो, उचाइ ८८४८ मिटर।
Sanskrit: धर्मक्षेत्रे कुरुक्षेत्रे समवेता युयुत्सवः।
Bengali: আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।
Assamese: অসমীয়া ভাষাত ৰ আৰু ৱ আখৰ দুটা বেলেগ।
Punjabi: ਸਤ ਸ੍ਰੀ ਅਕਾਲ, ਤੁਹਾਡਾ ਕੀ ਹਾਲ ਹੈ? ਮੈਂ ਠੀਕ ਹਾਂ।
Gujarati: ગુજરાતી ભાષામાં સુપ્રભાત કહેવાય છે, કેમ છો?
Odia: ଓଡ଼ିଆ ଭାଷା ଭାରତର ଏକ ପ୍ରାଚୀନ ଭାଷା ଅଟେ।
Tamil: தமிழ் மொழி மிகவும் பழமையானது, வணக்கம் நண்பர்களே!
Telugu: తెలుగు భాష చాలా మధురమైనది, శుభోదయం మిత్రమా.
Kannada: ಕನ್ನಡ ನಾಡಿನ ಜನರು ಬಹಳ ಒಳ್ಳೆಯವರು, ನಮಸ್ಕಾರ.
Malayalam: മലയാളം ഭാഷയിൽ ധാരാളം അക്ഷരങ്ങളുണ്ട്, സുഖമാണോ?
Sinhala: සිංහල භාෂාව ශ්‍රී ලංකාවේ ප්‍රධාන භාෂාවකි.
Thai: สวัสดีครับ วันนี้อากาศดีมาก เราจะไปเที่ยวตลาดน้ำกันไหม
Lao: ສະບາຍດີ ມື້ນີ້ອາກາດດີຫຼາຍ ພວກເຮົາໄປຕະຫຼາດກັນ
Khmer: សួស្តី ថ្ងៃនេះអាកាសធាតុល្អណាស់ តើអ្នកសុខសប្បាយទេ
Burmese: မင်္ဂလာပါ ဒီနေ့ ရာသီဥတု အရမ်းကောင်းတယ်။
Tibetan: བཀྲ་ཤིས་བདེ་ལེགས། དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག
Amharic: ሰላም ለዓለም፤ ዛሬ አየሩ በጣም ጥሩ ነው።
Tigrinya: ከመይ ኣለኹም? ሎሚ ጽቡቕ መዓልቲ እዩ።
Chinese: 今天天气很好,我们一起去公园散步吧!价格是38.5元。
Chinese: 《红楼梦》是中国古典小说的巅峰之作,共一百二十回。
Chinese: 臺灣的夜市有很多好吃的東西,例如臭豆腐、蚵仔煎。
Cantonese: 我哋聽日去飲茶好唔好呀?佢話冇問題㗎。
Japanese: 吾輩は猫である。名前はまだ無い。どこで生れたか見当がつかぬ。
Japanese: パソコンのキーボードが壊れたので、新しいのを買いました。
Japanese: ガギグゲゴとパピプペポ、12時半に東京駅で待ち合わせ。
Korean: 오늘은 날씨가 정말 좋아서 친구와 함께 한강 공원에 갔어요.
Korean: 키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.
Cherokee: ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎣᏍᏓ ᎢᎦ ᎠᏂᎨᏯ.
Inuktitut: ᐃᓄᒃᑎᑐᑦ ᐅᖃᐅᓯᖅ ᐱᐅᔪᖅ ᐅᓪᓗᒥ.
Javanese: ꦱꦸꦒꦼꦁ ꦲꦺꦚ꧀ꦗꦁ ꦥꦿꦶꦪꦺ ꦏꦧꦂꦺ
Gothic: 𐌼𐌰𐌲 𐌲𐌻𐌴𐍃 𐌹̈𐍄𐌰𐌽, 𐌽𐌹 𐌼𐌹𐍃 𐍅𐌿 𐌽𐌳𐌰𐌽 𐌱𐍂𐌹𐌲𐌲𐌹𐌸.
"""

CODE = [
    "def f(x: int) -> int:\n\treturn x ** 2  # squares\n\n\nprint(f(12))\n",
    'for (int i = 0; i < 10; ++i) {\r\n    printf("%d\\n", i);\r\n}\r\n',
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name HAVING COUNT(*) > 1;",
    '{"name": "value", "list": [1, 2.5, -3e10, null, true], "nested": {"a\\u00e9": "\\n"}}',
    "<!DOCTYPE html>\n<html>\n  <body class='x y'>&nbsp;</body>\n</html>",
    "fn main() -> Result<(), Box<dyn Error>> { let v: Vec<u8> = vec![0; 32]; Ok(()) }",
    "#include <stdio.h>\n#define MAX(a,b) ((a)>(b)?(a):(b))\n",
    "git commit -m 'fix: don''t crash' && git push --force-with-lease origin HEAD:main",
    "$ curl -sSL https://example.com/a?b=c&d=%20 | tar xz -C ~/.local/bin",
    "\\begin{equation}\n  \\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}\n\\end{equation}",
    "# Title\n\n- [x] done\n- [ ] open\n\n```python\nx = 1\n```\n\n| a | b |\n|---|:-:|\n",
    "--- a/file.c\n+++ b/file.c\n@@ -1,4 +1,5 @@\n-old\n+new\n context\n",
    "const f = async ({a, ...b}) => `${a?.b ?? 'x'}`;  // it's",
    "0xDEADBEEF 0b1010 1_000_000 3.14159265358979 1e-9 192.168.0.1 2024-01-31T12:00:00Z",
    "key:\n  - item: 'yes'\n    other: \"no\"\n...\n---\n",
    "x=>{if(a&&b||!c){return[...d]}}",
    "\t\t\tif (x)\n\t\t\t\ty();\n\n\n\n\t}",
    'public static void main(String[] args) { System.out.println("héllo"); }',
    'lambda: (yield)  # noqa: E731\n"""doc"""\nr\'\\d+\'\n',
    "aGVsbG8gd29ybGQhIFRoaXMgaXMgYmFzZTY0IHRleHQu==",
    "ｆｕｌｌｗｉｄｔｈ １２３ ＡＢＣ",
    "C:\\Users\\me\\Documents\\file (1).txt",
    "user+tag@example.co.uk, @handle #hashtag",
    "a->b; a::b; a..=b; a<<=1; a!==b; a<=>b; a?.b; a|>b",
]

CONTRACTIONS = [
    "I'm we'll you've they'd it's don't we're",
    "I'M WE'LL YOU'VE THEY'D IT'S DON'T WE'RE",
    "i'Ll i'lL i'vE i'Re",
    "'ſ 'ſt it'ſ IT'ſ",
    "I’m we’ll you’ve",
    "'s't're've'm'll'd",
    "'sa 'ta 'rea 'r 'l 'v 'e 'x",
    "'İ 'ı DON'İ don'ı KADIN'I",
    "''s '''t \"'d\"",
    "\n's \n\n't 3's ٣'s 中's é's é's",
    "rock'n'roll o'clock 'twas ain't y'all'd've",
    "'K 'Å 'ß 'ﬆ 'ǆ",
]

WHITESPACE = [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\t", "\t\t", " \n", "\n ",
    "  \n  ", " \t \n \t ", "a  b", "a   b", "a \n b", "a\n\n\nb", "a \r\n \r\n b", "a  \n",
    "a\t\tb", " a", "  a", "   a", "\na", "\n a", "\n  a", "a ", "a  ", "a\u00a0b",
    "a\u00a0\u00a0b", "\u00a0", "\u00a0\u00a0a", "a\u2003b", "a \u2003b", "a\u3000b",
    "\u3000\u3000a", "a\u2028b", "a\u2029\nb", "a\u0085b", "a\u0085\nb", "a\x0bb", "a\x0c\nb",
    "a\u200bb", "a\ufeffb", "\ufeffa", "a\u180eb", "a\u1680b", "a\u202f\u202f!", " !", "  !",
    "   !!\n\n", "!\n", "!\r\n\r\n a", "!\n !", " !\n\n !", "1 2", "1  2", " 1", "  1", "\n1",
    "\t1", "\t!", "\t a", " \ta", " \t1", "\n\t\n\t", "\x1c\x1d", "a\x00b", "\x00", "\x7f",
    "\x1b[31mred\x1b[0m", "  \u00a0 x", "\u2009\u2009,", "x \u00a0\n\u00a0 y",
]  # fmt: skip

EMOJI = [
    "👍", "👍🏽", "👨‍👩‍👧‍👦", "👩🏿‍🚀", "🏳️‍🌈", "🏴‍☠️", "🇩🇪🇫🇷🇯🇵", "1️⃣2️⃣#️⃣*️⃣", "❤️",
    "❤", "☺️☺", "🫠🫡🪿🩷", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "a👍b", " 👍", "  👍", "👍👍👍👍", "👍\n👍",
    "🤷🏽‍♀️ dunno", "¯\\_(ツ)_/¯", "(╯°□°)╯︵ ┻━┻", "★彡", "→⇒∀∃∈∅≠≤", "½⅓¼²³₁₂", "①②③ⅣⅤⅥ",
    "℃℉Ω K Å", "♥♦♣♠", "™©®", "…‥—–‑", "«»„“”‚‘’", "€£¥₹₿", "𝕳𝖊𝖑𝖑𝖔", "𝟘𝟙𝟚", "ﷺ", "﷽", "ﬁﬂﬀ", "Ⅷ",
    "〇", "〆", "㍿", "㎏", "ｶﾞ", "ｷﾞ",
]  # fmt: skip

MARKS = [
    "e\u0301", "\u00e9", "e\u0323\u0301", "e\u0301\u0323", "\u1e69", "s\u0307\u0323",
    "s\u0323\u0307", "q\u0307\u0323", "a\u0300\u0301\u0302", "\u0301", "\u0301a", "\n\u0301",
    " \u0301", "1\u0301", "\u0344", "\u0340\u0341", "\u212b", "\u2126", "\u2000\u2001", "\u0958",
    "\u0915\u093c", "\u09c7\u09be", "\u0b47\u0b57", "\u0cc6\u0cc2\u0cd5", "\u0dd9\u0dcf\u0dca",
    "\u1025\u102e", "\u30ab\u3099", "\u306f\u309a", "\u3099\u309a", "\u1100\u1161",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "\uac00\u11a7", "\uac01\u11a8", "\u1100\u1100\u1161",
    "\u1161\u11a8", "\u1112\u1175\u11c2", "\u1113\u1161", "\ua960\u1161", "\u1100\u1176",
    "\u1100\u1161\u0301\u11a8", "\ufb1d", "\ufb2c", "\u05e9\u05bc\u05c1", "\u0627\u0653",
    "\u0627\u0654\u0655", "\u064b\u0651", "\u0651\u064b", "\U0001d15e", "\U0001d15f\U0001d16d",
    "\U000110a5\U000110ba", "\U00011935\U00011930", "\U00011938", "\u0f71\u0f72\u0f74", "\u0f73",
    "\u0f43", "\u2adc", "\ufa0e\uf900", "\U0002f800", "\u0374\u037e\u0387", "\u1fbe\u1fef",
    "\u0390\u1fd3", "\u03b1\u0313\u0301\u0345", "\u03b1\u0345\u0301\u0313", "\u1f80\u0301",
    "a\u034f\u0301", "a\u200d\u0301", "\u0041\u030a\u0301", "o\u0328\u0304", "o\u0304\u0328",
    "Z\u0351\u036e\u031a", "\u0315\u0300\u05ae\u0062", "\u1ab0\u0307", "\u302a\u302b\u3032",
    "\u20d0\u20e5",
]  # fmt: skip

INVALID = [
    b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xed\xa0\xbd\xed\xb8\x80",
    b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xfe\xff", b"a\xffb", b"a\x80\x80b",
    b"\xe2\x28\xa1", b"\xe2\x82\x28", b"\xf0\x28\x8c\xbc", b"\xf0\x90\x28\xbc", b"caf\xe9",
    b"\xe4\xbd\xa0\xe5\xa5", b"\xbd\xa0\xe5\xa5\xbd", b"\xc3\xa9\xc3", b"<|im_end|>\xff<think>",
    b"\xf0\x9f<think>", b"e\xcc", b"e\xcc\x81\xcc", b"\xcc\x81\xff\xcc\x81", b"\xef\xbf\xbd\xff",
    b"\xf4\x8f\xbf\xbf", b"\x00\xff\x00", b" \xff", b"\n\xff\n", b"'\xff", b"'\xc5",
    b"'\xc5\xbf", b"1\xff2", b"\xc2\xa0\xa0", b"\xe3\x80",
]  # fmt: skip


def digits() -> list[str]:
    """Ten digits of every script that has them, alone and next to letters."""
    zeros = [c for c in range(0x20000) if unicodedata.decimal(chr(c), None) == 0]
    rows = ["".join(chr(zero + i) for i in range(10)) for zero in zeros]
    return [text for row in rows for text in (row, f"a{row[3]}b {row[5:8]}.")]


def languages(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(language, text): each sentence, and what changes under normalization, case,
    punctuation, layout and cuts in the middle of words."""
    for line in LANGUAGES.strip().splitlines():
        language, text = line.split(": ", 1)
        at = sorted(rng.sample(range(len(text) + 1), 2))
        yield from (
            (language, variant)
            for variant in (
                text,
                unicodedata.normalize("NFC", text),
                unicodedata.normalize("NFD", text),
                unicodedata.normalize("NFKD", text).upper(),
                text.lower().replace(" ", "_"),
                text.replace(" ", "\n"),
                f"  «{text}»\r\n\r\n",
                f"({text.split()[0]}) {text[::-1]}",
                text[at[0] : at[1]],
                text[at[1] :],
                unicodedata.normalize("NFD", text)[1 : at[1] + 1],
                "\t".join(text.split()[:4]) + f" {rng.randrange(10**6)}{text[-3:]}",
            )
        )


def added_spellings(added: list[str], rng: random.Random) -> Iterator[str]:
    for token in added:
        yield from (token, f"a{token}b", f" {token} ", f"{token}\n{token}", token[:-1], token[1:])
        yield token[: len(token) // 2] + " " + token[len(token) // 2 :]
        yield f"e{token}\u0301 '{token}s  {token}  x"
    yield "<|im_start|>user\nHi /no_think<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    yield from ("<<think>>", "<|<|im_end|>|>", "<|im_end|", "<think", "</think></think>", "<|im_|>")
    for _ in range(40):
        yield "".join(rng.choice([*added, "<", "|", "|>", "x", " ", "\n"]) for _ in range(6))


def runs() -> Iterator[str]:
    units = [
        "a",
        "A",
        " ",
        "\n",
        "\r\n",
        "\t",
        ".",
        "=",
        "-",
        "1",
        "é",
        "e\u0301",
        "的",
        "あ",
        "ก",
        "ا",
    ]
    units += [
        "\u0301",
        "👍",
        "🏽",
        "\u00a0",
        "!?",
        " a",
        "  a",
        " \n",
        "<",
        "'s",
        "ab",
        "\u0301\u0323",
    ]
    for unit in units:
        for n in (2, 3, 4, 5, 7, 8, 15, 16, 31, 64, 127, 1000):
            yield unit * n


def mixtures(pieces: list[str], rng: random.Random) -> Iterator[str]:
    """Random joints of everything above, and random characters of all planes."""
    marks = [chr(c) for c in range(0x20000) if unicodedata.combining(chr(c))]
    letters = [chr(c) for c in range(0x2FA20) if unicodedata.category(chr(c))[0] == "L"]
    symbols = [chr(c) for c in range(0x2FA20) if unicodedata.category(chr(c))[0] in "NPSZM"]
    for _ in range(900):
        parts = []
        for _ in range(rng.randrange(2, 7)):
            piece = rng.choice(pieces)
            start = rng.randrange(len(piece))
            parts.append(piece[start : start + rng.randrange(1, 12)])
        yield "".join(parts)
    for _ in range(600):
        pools = rng.sample([marks, letters, symbols, list("'sdmtrevl \n\r\t019aZ")], 2)
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 20)))


def groups(added: list[str]) -> dict[str, list[bytes]]:
    rng = random.Random(20250429)
    texts: dict[str, list[str]] = {}
    for language, text in languages(rng):
        texts.setdefault(f"language {language}", []).append(text)
    texts |= {"code": CODE, "contractions": CONTRACTIONS, "white space": ["", *WHITESPACE]}
    texts |= {"emoji and symbols": EMOJI, "marks": MARKS, "digits": digits()}
    texts |= {"added tokens": list(added_spellings(added, rng)), "runs": list(runs())}
    pieces = sorted({text for group in texts.values() for text in group if text})
    texts["mixtures"] = list(mixtures(pieces, rng))
    result = {name: [text.encode() for text in group] for name, group in texts.items()}
    result["invalid"] = [*INVALID, *damaged(result["mixtures"], rng)]
    return result


def damaged(texts: list[bytes], rng: random.Random) -> Iterator[bytes]:
    for text in texts[:200]:
        data = bytearray(text)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data[: rng.randrange(1, len(data) + 1)])


def read_tokenizers(directory: Path) -> tuple[Tokenizer, Tokenizer, list[str]]:
    """(with its added tokens as plain text, as they are, their texts)"""
    packed = directory / "tokenizer.json.gz"
    if packed.is_file():
        text = gzip.decompress(packed.read_bytes())
    else:
        text = (directory / "tokenizer.json").read_bytes()
    config = json.loads(text)
    added = [token["content"] for token in config["added_tokens"]]
    parsing = Tokenizer.from_str(json.dumps(config))
    plain = Tokenizer.from_str(json.dumps(config | {"added_tokens": []}))
    return plain, parsing, added


def main(directory: Path, out: Path) -> None:
    plain, parsing, added = read_tokenizers(directory)

    def ids(tokenizer: Tokenizer, text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    strings: dict[str, list[list[object]]] = {}
    for name, group in groups(added).items():
        for data in dict.fromkeys(group):
            text = data.decode("utf-8", "replace")
            row = [ids(plain, text), ids(parsing, text)]
            if row[0] == row[1]:
                del row[1]
            strings.setdefault(name, []).append([data.decode("utf-8", "surrogateescape"), *row])

    sweeps: dict[str, dict[str, str]] = {}
    for template in SWEEPS:
        for start in SWEPT:
            flat: list[int] = []
            for first in range(start, start + BLOCK, TEXT):
                chars = (chr(c) for c in range(first, first + TEXT) if not 0xD800 <= c <= 0xDFFF)
                flat += ids(plain, "".join(map(template.format, chars)))
            digest = hashlib.sha256(struct.pack(f"<{len(flat)}i", *flat)).hexdigest()
            sweeps.setdefault(template, {})[hex(start)] = digest

    content = json.dumps({"strings": strings, "sweeps": sweeps}, separators=(",", ":"))
    out.write_bytes(gzip.compress(content.encode("ascii"), 9, mtime=0))
    n_strings = sum(map(len, strings.values()))
    n_languages = sum(name.startswith("language ") for name in strings)
    print(f"{n_strings} strings, {n_languages} languages, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
