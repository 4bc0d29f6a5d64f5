package photos

import (
	"math/rand/v2"
	"strings"
)

// Words of the seeded data set. They are plain ASCII on purpose. Tests, not seeded data,
// check that stores support other characters.
const (
	givenNames = "Ada Alan Amara Anna Barbara Carla Chen Dmitri Edsger Elena Fatima Frances Grace Hana Hedy " +
		"Ibrahim Ines Ivan Jonas Joan Kwame Katherine Ken Lena Leslie Linus Lucia Malik Margaret Marta Mei Niklaus " +
		"Noor Olga Omar Priya Radia Rosa Sofia Tariq Tim Ulla Vera Wei Yuki Zofia"
	familyNames = "Adeyemi Almeida Andersen Baker Bauer Castro Chaudhry Costa Dubois Eriksson Ferrari Fischer " +
		"Garcia Haddad Hansen Hoffman Ivanova Jansen Kaya Kim Kowalski Larsen Lopez Mensah Moreau Mori Nakamura " +
		"Novak Okafor Olsen Park Patel Petrov Quinn Rossi Sato Schmidt Silva Singh Svensson Tanaka Torres Visser " +
		"Wang Weber Yilmaz"

	lights = "Golden hour|First light|Blue hour|Fog|Late sun|Storm light|Moonrise|Long shadows|Rain|Fresh snow|" +
		"A quiet morning|Evening glow|Clear skies|Low clouds|Northern lights|Midday heat"
	settings = "over the harbour|above the valley|at the lighthouse|in the old town|by the river|on the ridge|" +
		"behind the dunes|at the pier|in the pine forest|across the bay|on the rooftops|over the rice fields|" +
		"at the canal|near the glacier|in the vineyard|under the bridge"
	subjects = "A heron|Two fishing boats|My bicycle|The night train|The walled garden|A red umbrella|" +
		"The last ferry|Street musicians|A sleeping cat|Market day|The bakery window|An empty bench|Wild horses|" +
		"Paper lanterns|The football pitch|A tram"
	places = "Lisbon|Bergen|Kyoto|Valparaiso|Cape Town|Reykjavik|Hanoi|Tbilisi|Oaxaca|Ghent|Tallinn|Naples|Chennai|" +
		"Dakar|Quebec|Hobart"

	praise = "Lovely light|What a place|Great timing|I know that spot|Beautiful colours|So peaceful|" +
		"This made my day|Wonderful framing|Love the reflections|One of your best"
	remarks = "Which lens was this?|I was there last spring.|Looks even better large.|More of these, please.|" +
		"How early did you get up?|The blur suits it.|I can almost hear it.|Saved for our next trip.|" +
		"Is it always this empty?|The foreground makes it."
)

func personName(rng *rand.Rand) string {
	return pick(rng, givenNames, " ") + " " + pick(rng, familyNames, " ")
}

// photoTitle returns something that a person could have typed.
func photoTitle(rng *rand.Rand) string {
	switch rng.IntN(4) {
	case 0:
		return pick(rng, lights, "|") + ", " + pick(rng, places, "|")
	case 1:
		return pick(rng, subjects, "|") + " " + pick(rng, settings, "|")
	case 2:
		return pick(rng, subjects, "|") + ", " + pick(rng, places, "|")
	default:
		return pick(rng, lights, "|") + " " + pick(rng, settings, "|")
	}
}

func commentText(rng *rand.Rand) string {
	text := pick(rng, praise, "|")
	if rng.IntN(2) == 0 {
		return text + "!"
	}
	return text + ". " + pick(rng, remarks, "|")
}

// pick draws one of the words of a list.
func pick(rng *rand.Rand, list, separator string) string {
	n := rng.IntN(strings.Count(list, separator) + 1)
	for range n {
		_, list, _ = strings.Cut(list, separator)
	}
	word, _, _ := strings.Cut(list, separator)
	return word
}
