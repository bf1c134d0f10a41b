// What the mock says.

const fence = "```";

export const texts = {
  plain: (said, n) => `You said “${said.slice(0, 80)}”. That makes ${n} messages so far.\n\nA hawfinch can crack a cherry stone: its bill closes with a force of about fifty kilograms, though the bird weighs less than sixty grams.`,
  thoughts: "The question is about the bird. First I should recall what it eats, then how strong the bill is.\n\nCherry stones need 30 to 45 kg; olive stones even more. So the answer is yes.",
  markdown: `# A short guide to the hawfinch

The **hawfinch** (*Coccothraustes coccothraustes*) is the largest finch of Europe. See [its entry](https://en.wikipedia.org/wiki/Hawfinch) or https://www.iucn.org/species.

## Where it lives

- Old deciduous woods, above all **hornbeam** and cherry
- Orchards and large gardens
  - in winter also at feeders
  - seldom on the ground
- Parks with yew

1. Listen for a sharp \`tick\`.
2. Look at the tops of trees.
3. Wait.

> It is a shy bird. Most people who live beside one have never seen it.

| Measure | Value | Unit |
| :-- | --: | :-- |
| Length | 16.5 – 18 | cm |
| Wingspan | 29 – 33 | cm |
| Weight | 46 – 72 | g |

${fence}python
def crack(stone: str, force: float) -> bool:
    """Whether the bill opens a stone."""
    need = {"cherry": 27.0, "olive": 48.0}
    return force >= need.get(stone, 0.0)
${fence}

An <script>alert(1)</script> stays text, and so does [this](javascript:alert(1)). ![A picture](https://example.org/x.png)`,
  rtl: `البلبل الزيتوني طائر جميل له منقار قوي جدا، ويمكنه أن يكسر نواة الكرز.

- يعيش في الغابات القديمة
- يأكل البذور والثمار

Hawfinch هو اسمه بالإنجليزية.

This paragraph is English and goes from left to right.`,
  cjk: `锡嘴雀（*Coccothraustes coccothraustes*）是雀科的鸟类，**嘴粗大而有力，**可以咬开樱桃核。它们喜欢在落叶林中生活，冬天也会到公园和花园里觅食。

シメ（鴲）は、スズメ目アトリ科に分類される鳥類の一種です。太くて頑丈な嘴を持ち、**硬い種子を割って**食べます。

콩새는 되새과에 속하는 새로, 굵고 튼튼한 부리로 단단한 씨앗을 깨서 먹는다.`,
  long: "This reply goes on for as long as it may, and then it is cut off in the middle of a",
  fast: Array.from({ length: 40 }, (_, i) => `Paragraph ${i + 1} of a long reply that comes quickly, with **bold**, *italic* and \`code\`, and enough words to fill more than one line of the column on any screen.`).join("\n\n"),
};
