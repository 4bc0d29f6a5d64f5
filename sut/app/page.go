package app

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// pagePhotos is the number of photos on the page.
const pagePhotos = 24

//go:embed page.html
var pageHTML string

// contentPolicy allows the page to load only content of this service.
const contentPolicy = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// newPage returns the template of the page. Its data is a pageView.
func newPage(assets map[string]asset) *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"asset": func(name string) string { return assets[name].url(name) },
		"date":  func(layout string, us int64) string { return time.UnixMicro(us).UTC().Format(layout) },
	}).Parse(pageHTML))
}

// pageView is the data of the page.
type pageView struct {
	Node         string
	User         photos.ID // the user who is logged in; 0 = nobody
	Degraded     bool      // the database is down, so there are no photos
	Photos       []photos.Photo
	ImageVersion int
}

// showPage answers GET /. When the database is down, the page has no photos. Its text
// and its header say so.
func (a *App) showPage(ctx context.Context, x *exchange) error {
	newest, err := a.config.Store.Newest(ctx, pagePhotos)
	view := pageView{Node: a.config.Node, User: x.user, Photos: newest, ImageVersion: photos.ImageVersion}
	header, status := x.Header(), http.StatusOK
	if err = a.tierProblem(x, tierDB, "the page", err); err != nil {
		p, ok := errors.AsType[*problem](err)
		if !ok || p.degraded == "" {
			return err
		}
		a.noteProblem(x, p)
		view.Degraded, status = true, p.status
		header.Set("Retry-After", "1")
	}
	var page bytes.Buffer
	if err := a.page.Execute(&page, &view); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	header.Set("Content-Security-Policy", contentPolicy)
	x.showVersion(highestVersion(newest))
	x.reply(status, "text/html; charset=utf-8", "no-cache", page.Bytes())
	return nil
}
