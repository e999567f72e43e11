import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

/** A photo with java.net.http at its defaults: java Upgrade.java PHOTO URL */
class Upgrade {
    public static void main(String[] arguments) throws Exception {
        var body = HttpRequest.BodyPublishers.ofFile(Path.of(arguments[0]));
        var request = HttpRequest.newBuilder(URI.create(arguments[1])).POST(body).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.body());
        System.exit(answer.statusCode() == 200 ? 0 : 1);
    }
}
