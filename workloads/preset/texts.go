package preset

import (
	"net/url"
	"strconv"
)

// texts holds the texts of comments and titles, without their ends. Each text ends
// with the index of its op, which identifies the op that has written a record.
type texts struct {
	comments []string // prefixes of JSON bodies
	titles   []string // prefixes of JSON bodies
	paths    []string // prefixes of the paths of uploads
}

func newTexts() texts {
	var t texts
	for _, first := range []string{
		"Lovely light", "What a colour", "So calm", "Great moment", "I was there too", "Sharp as ever",
	} {
		for _, second := range []string{
			"well seen", "more of these", "where is this", "thank you", "this is my favourite of yours so far",
		} {
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

// finish completes a JSON body with the index of its op.
func finish(prefix string, n uint64) []byte {
	return append(strconv.AppendUint([]byte(prefix), n, 10), `"}`...)
}
