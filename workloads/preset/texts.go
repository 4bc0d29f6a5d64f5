package preset

import (
	"net/url"
	"strconv"
)

// texts is what users write. Each text ends with the number of its op, so that
// what a write left behind can be traced to the op that made it.
type texts struct {
	comments []string // beginnings of JSON bodies
	titles   []string // beginnings of JSON bodies
	paths    []string // beginnings of paths
}

func newTexts() texts {
	var t texts
	for _, first := range []string{"Lovely light", "What a colour", "So calm", "Great moment", "I was there too", "Sharp as ever"} {
		for _, second := range []string{"well seen", "more of these", "where is this", "thank you", "this is my favourite of yours so far"} {
			t.comments = append(t.comments, `{"text":"`+first+", "+second+" #")
		}
	}
	for _, first := range []string{"Morning", "Evening", "Rain", "First snow", "Market day", "Fog"} {
		for _, second := range []string{"at the harbour", "in the old town", "by the lake", "on the bridge", "at home"} {
			title := first + " " + second + " #"
			t.titles = append(t.titles, `{"title":"`+title)
			t.paths = append(t.paths, "/api/photos?title="+url.QueryEscape(title))
		}
	}
	return t
}

func (x *texts) comment(t turn) []byte {
	return finish(x.comments[t.pick(streamDetail, len(x.comments))], t.n)
}

func (x *texts) title(t turn) []byte {
	return finish(x.titles[t.pick(streamDetail, len(x.titles))], t.n)
}

func (x *texts) uploadPath(t turn) string {
	return numbered(x.paths[t.pick(streamDetail, len(x.paths))], t.n, "")
}

func finish(beginning string, n uint64) []byte {
	return append(strconv.AppendUint([]byte(beginning), n, 10), `"}`...)
}
