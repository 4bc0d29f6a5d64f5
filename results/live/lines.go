package live

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// lines is the screen of a log file: a line where a cell begins and one where
// a step ends.
type lines struct {
	w io.Writer
}

func (l *lines) cell(v view) {
	text := "cell " + v.cellText()
	if left := v.leftText(time.Now()); left != "" {
		text += ", " + left
	}
	l.print(text + "\n")
}

func (l *lines) step(view)   {}
func (l *lines) sample(view) {}

func (l *lines) stepEnd(v view) {
	figures := "no figures"
	if v.sampled {
		figures = fmt.Sprintf("%s rps completed, %s", rate(v.rps), v.figuresText())
	}
	l.print("  " + v.stepText() + ": " + figures + "\n")
}

func (l *lines) print(text string) {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	_, _ = fmt.Fprint(l.w, text) // see the package comment
}

func (l *lines) close() {}
